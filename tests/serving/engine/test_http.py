"""vLLM's server, asked over HTTP: requests mixed in three ways, what is refused, and `leace-fast serve-check`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import served

import leace_fast as lf
from leace_fast.serving import Server

MOST = 1e-4
AT_ONCE = 12
REQUESTS = 500 if os.environ.get("LEACE_FAST_NIGHTLY_PART") == "all" else 50
WAYS: list[tuple[dict[str, Any], str]] = [({}, ""), ({"leace_fast": "one"}, "one"), ({"leace_fast": "two"}, "two")]


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"leace_fast": served.by_request(folder)}
    options = {
        "--additional-config": json.dumps(settings),
        "--dtype": "float32",
        "--max-model-len": "400",
        "--max-num-seqs": "32",
        "--kv-cache-memory-bytes": str(2**26),
        "--host": "127.0.0.1",
        "--port": str(port),
    }
    words = [word for option in options.items() for word in option]
    model = str(folder / "model")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--enforce-eager", *words]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **served.ONE_CORE}, cwd=served.HERE
        )
    try:
        for _ in range(served.SECONDS):
            assert process.poll() is None, log.read_text()[-9000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, ids: list[int], choice: dict[str, Any]) -> list[Any]:
    """Tokens of an answer and their log-probabilities."""
    more = {"max_tokens": 6, "logprobs": 5, "return_tokens_as_token_ids": True, "ignore_eos": True}
    asked = {"model": Server(url).model, "prompt": ids, "temperature": 0, "vllm_xargs": choice or None, **more}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=served.SECONDS) as answer:
        given = json.load(answer)["choices"][0]["logprobs"]
    number = len("token_id:")
    tops = [{token[number:]: value for token, value in top.items()} for top in given["top_logprobs"]]
    return [[int(token[number:]) for token in given["tokens"]], tops]


def test_requests_mixed_in_three_ways(url: str, model: Any, scrubbers: dict[str, lf.Scrubber]) -> None:
    """Prompts come back in other ways, so that the prefix cache would mix them; twelve are on their way at once."""
    ids = served.prompts(10, 140, 300)
    asked = [(ids[i * 7 % len(ids)], *WAYS[i % 3]) for i in range(REQUESTS)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(lambda each: ask(url, each[0], each[1]), asked))
    worst = {name: 0.0 for _, name in WAYS}
    for (prompt, _, name), result in zip(asked, results, strict=True):
        worst[name] = max(worst[name], served.distance(model, scrubbers.get(name), prompt, result))
    assert max(worst.values()) < MOST, worst


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"leace_fast": "three"}, "leace_fast is 'three', expected 'none' or one of ['one', 'two']"),
        ({"leace_fast": "one", "leace_fast_strength": 0.7}, "expected one of [1.0, 0.5] for 'one'"),
        ({"leace_fast": "none", "leace_fast_strength": 1}, "without an eraser"),
        ({"leace_fast_strenght": 1}, "'leace_fast_strenght' is unknown"),
        ({"leace_fast": 1}, "leace_fast is 1"),
    ],
)
def test_refused_at_the_door(url: str, choice: dict[str, Any], message: str) -> None:
    """With HTTP 400; the server serves on."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, [1, 2, 3], choice)
    assert refused.value.code == 400 and message in json.loads(refused.value.read())["error"]["message"]
    assert ask(url, [1, 2, 3], {})


def test_serve_check(url: str, folder: Path) -> None:
    """Erased where an eraser is asked for, un-erased where none is, and neither where it is another one."""
    words = [sys.executable, "-c", "from leace_fast.cli import app; app()", "serve-check", url]
    words += ["--model", str(folder / "model")]
    for more, code, verdict in (
        (["--erasers", str(folder / "one"), "--name", "one"], 0, "erased"),
        (["--erasers", str(folder / "one"), "--name", "one", "--strength", "0.5"], 0, "erased"),
        (["--erasers", str(folder / "one")], 3, "un-erased"),
        (["--erasers", str(folder / "one"), "--name", "two"], 3, "neither"),
    ):
        done = subprocess.run([*words, *more], capture_output=True, text=True, cwd=served.HERE)
        assert (done.returncode, done.stdout.partition(":")[0]) == (code, verdict), done.stdout + done.stderr
