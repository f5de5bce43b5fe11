"""A running server with an OpenAI-style endpoint, asked for the log-probabilities that it serves."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from .._schema import short

TOP = 5  # log-probabilities of a token that every such server gives


class Server:
    """A server at a URL, of any stack that completes token ids and gives log-probabilities.

    Args:
        url: of the server, with or without "/v1" behind it.
        model: the name that it serves the model under; None for the first that it lists.
        key: that it asks for; None for none.
        more: fields that each request carries, such as vLLM's `vllm_xargs`.
        timeout: seconds that an answer may take.

    Raises:
        ValueError: the URL is none of http or https.
        ConnectionError: nothing answers there.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        more: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"the server is {url!r}, expected a URL such as http://localhost:8000")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.more, self.timeout = dict(more or {}), timeout
        self.model = model or self._first_model()

    def top(self, prompt: Sequence[int]) -> list[float]:
        """Return the highest log-probabilities of the token that follows a prompt, the highest first.

        Some may be missing, where a server gives tokens that read alike once.

        Args:
            prompt: token ids.

        Raises:
            ValueError: the server refuses the request, or gives no log-probabilities.
            ConnectionError: nothing answers.
        """
        asked = {"model": self.model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0, "logprobs": TOP}
        # vLLM then tells tokens apart that read alike; other servers take no notice
        answer = self._ask("/v1/completions", {**asked, "return_tokens_as_token_ids": True, **self.more})
        try:
            given = answer["choices"][0]["logprobs"]
            first = given["top_logprobs"][0] if "top_logprobs" in given else given["content"][0]["top_logprobs"]
            values = [*first.values()] if isinstance(first, dict) else [each["logprob"] for each in first]
            found = sorted((float(value) for value in values), reverse=True)[:TOP]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{self.url} gives no log-probabilities: it answered {short(answer)}") from error
        if not found:
            raise ValueError(f"{self.url} gives no log-probabilities: it answered {short(answer)}")
        return found

    def _first_model(self) -> str:
        answer = self._ask("/v1/models")
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{self.url} lists no model, it answered {short(answer)}: name the model") from None

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise ValueError(f"{self.url}{path} refuses ({error.code}): {short(said)}") from error
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ConnectionError(f"no server answers at {self.url}{path} ({reason}): is it up?") from error
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError(f"{self.url}{path} answers no JSON: {short(text.decode(errors='replace'))}") from None
