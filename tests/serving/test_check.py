"""`serve-check` against a stand-in of a server, which serves a model of transformers over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from typer.testing import CliRunner

import leace_fast as lf
from leace_fast.cli import app
from leace_fast.serving import Server, check_served


@contextmanager
def serving(model: Any, answer: Any = None, status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """A server of a model's log-probabilities, or of one answer; with what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say({"data": [{"id": "tiny"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((dict(self.headers), body))
            if answer is not None:
                return self.say(answer, status)
            with torch.no_grad():
                logits = model(torch.tensor([body["prompt"]])).logits[0, -1].log_softmax(-1)
            top = logits.topk(body["logprobs"])
            tokens = {f"token {i}": value for i, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)}
            self.say({"choices": [{"logprobs": {"top_logprobs": [tokens]}}]})

        def say(self, said: Any, code: int = 200) -> None:
            text = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    model = tiny_models.build("llama", torch.float32).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.normal_(0, 0.3) if part.ndim > 1 else None
    return model


@pytest.fixture(scope="module")
def scrubber(model: Any) -> lf.Scrubber:
    ids = [torch.randint(3, 63, (16, 32), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    return lf.scrub(model, [{"input_ids": each, "concept_labels": each % 4} for each in ids])


def test_erased_un_erased_and_neither(model: Any, scrubber: lf.Scrubber) -> None:
    with serving(model) as (url, asked):
        found = check_served(Server(url), model, scrubber)
        assert found.verdict == "un-erased" and found.to_clean < 1e-4 < found.effect
        assert len(asked) == found.prompts == 12 and asked[0][1]["model"] == "tiny"

    other = lf.Scrubber({site: eraser.scaled(2.0) for site, eraser in scrubber.items()})
    for erasers, verdict in ((scrubber, "erased"), (other, "neither")):
        served = tiny_models.build("llama", torch.float32).eval()
        served.load_state_dict(model.state_dict())
        with erasers.attached(served), serving(served) as (url, _):
            found = check_served(Server(url + "/v1/"), model, scrubber, prompts=4)
            assert found.verdict == verdict and str(found).startswith(f"{verdict}: ")
            assert found.to_clean > 1e-2


def test_a_server_of_some_erased_requests_is_neither(model: Any, scrubber: lf.Scrubber) -> None:
    count = iter(range(100))

    def one_of_six(ids: torch.Tensor) -> Any:
        if next(count) % 6:
            with scrubber.attached(model):
                return model(ids)
        return model(ids)

    with serving(one_of_six) as (url, _):
        assert check_served(Server(url), model, scrubber).verdict == "neither"


def test_folded(model: Any, scrubber: lf.Scrubber) -> None:
    served = tiny_models.build("llama", torch.float32).eval()
    served.load_state_dict(model.state_dict())
    scrubber.fold_(served, max_cost_ratio=100.0)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    with serving(served) as (url, _):
        assert check_served(Server(url), model, scrubber, folded=True).verdict == "erased"
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())


def test_what_is_asked_carries_the_key_and_more_fields(model: Any, scrubber: lf.Scrubber) -> None:
    more = {"vllm_xargs": {"leace_fast": "gender"}}
    with serving(model) as (url, asked):
        check_served(Server(url, "mine", "secret", more), model, scrubber, prompts=1)
    headers, body = asked[0]
    assert headers["Authorization"] == "Bearer secret" and body["model"] == "mine"
    assert body["vllm_xargs"] == more["vllm_xargs"] and len(body["prompt"]) == 24


def test_erasers_that_change_nothing_tell_nothing(model: Any, scrubber: lf.Scrubber) -> None:
    nothing = lf.Scrubber({site: eraser.scaled(0.0) for site, eraser in scrubber.items()})
    with serving(model) as (url, asked), pytest.raises(ValueError, match="cannot be told from rounding"):
        check_served(Server(url), model, nothing)
    assert not asked


def test_tokens_that_read_alike_are_given_once(model: Any, scrubber: lf.Scrubber) -> None:
    """A server that keys by text loses some of them, the highest too: what is left is told apart all the same."""

    class Few:
        def __init__(self, url: str) -> None:
            self.server, self.calls = Server(url), 0

        def top(self, prompt: list[int]) -> list[float]:
            values = self.server.top(prompt)
            self.calls += 1
            return values[:1] + values[2:4] if self.calls % 2 else values[2:]

    served = tiny_models.build("llama", torch.float32).eval()
    served.load_state_dict(model.state_dict())
    with serving(served) as (url, _):
        few: Any = Few(url)
        assert check_served(few, model, scrubber).verdict == "un-erased"
        with scrubber.attached(served):
            assert check_served(few, model, scrubber).verdict == "erased"


@pytest.mark.parametrize(
    "answer, status, message",
    [
        ({"choices": [{"text": "a", "logprobs": None}]}, 200, "gives no log-probabilities"),
        ({"choices": [{"logprobs": {"top_logprobs": [{}]}}]}, 200, "gives no log-probabilities"),
        ({"choices": []}, 200, "gives no log-probabilities"),
        ("<html>", 200, "answers no JSON"),
        ({"error": "no such eraser"}, 400, r"refuses \(400\): .*no such eraser"),
    ],
)
def test_answers_without_log_probabilities(
    model: Any, scrubber: lf.Scrubber, answer: Any, status: int, message: str
) -> None:
    with serving(model, answer, status) as (url, _), pytest.raises(ValueError, match=message):
        check_served(Server(url), model, scrubber)


def test_answers_of_chat_form_are_read(model: Any, scrubber: lf.Scrubber) -> None:
    content = [{"top_logprobs": [{"logprob": -0.5}, {"logprob": -0.25}]}]
    with serving(model, {"choices": [{"logprobs": {"content": content}}]}) as (url, _):
        assert Server(url).top([1]) == [-0.25, -0.5]


def test_no_server_and_no_url(model: Any, scrubber: lf.Scrubber) -> None:
    for url in ("localhost:8000", "file:///etc/passwd", "http://"):
        with pytest.raises(ValueError, match="expected a URL such as"):
            Server(url)
    with pytest.raises(ConnectionError, match=r"no server answers at http://127.0.0.1:9/v1/models .*is it up"):
        Server("http://127.0.0.1:9")
    with serving(model) as (url, _), pytest.raises(ValueError, match="prompts is 0"):
        check_served(Server(url), model, scrubber, prompts=0)


def test_the_command(model: Any, scrubber: lf.Scrubber, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    scrubber.save_pretrained(tmp_path / "erasers")
    words = [
        "serve-check",
        "--erasers",
        str(tmp_path / "erasers"),
        "--model",
        str(tmp_path / "model"),
        "--device",
        "cpu",
    ]
    with serving(model) as (url, asked):
        result = CliRunner().invoke(app, [*words, url])
        assert result.exit_code == 3 and result.output.startswith("un-erased: "), result.output
        result = CliRunner().invoke(app, [*words, url, "--json", "--name", "one", "--strength", "0.5"])
        assert result.exit_code == 3 and json.loads(result.output)["verdict"] == "un-erased"
        assert asked[-1][1]["vllm_xargs"] == {"leace_fast": "one", "leace_fast_strength": 0.5}
        result = CliRunner().invoke(app, [*words, url, "--strength", "0.5"])
        assert result.exit_code == 2 and "give its --name too" in result.output
    with scrubber.attached(model), serving(model) as (url, _):
        result = CliRunner().invoke(app, [*words, url])
        assert result.exit_code == 0 and result.output.startswith("erased: ")
    result = CliRunner().invoke(app, [*words, "http://127.0.0.1:9"])
    assert result.exit_code == 2 and "is it up?" in result.output
