"""`transformers serve` with a folded folder, and with an adapter's folder that holds the model."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from extra_packages import environment
from transformers import AutoModelForCausalLM, AutoTokenizer

import leace_fast as lf
from leace_fast.demo import ASSETS, load_language_model, load_modules

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore:.*rows are few", "ignore:on the example the output is"),
]
TOKENS = 24


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server without a model of its own: each request names a folder."""
    variables = environment("fastapi", "uvicorn", "openai", alone=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as serving:
        try:
            for _ in range(120):
                assert serving.poll() is None, serving.stdout and serving.stdout.read()[-3000:]
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            serving.terminate()


def completed(server: str, model: Path, prompt: str) -> str:
    asked = {"model": str(model), "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    request = urllib.request.Request(
        f"{server}/v1/completions", json.dumps(asked).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["text"]


@torch.no_grad()
def continued(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=TOKENS, do_sample=False)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_folders_are_served_erased(server: str, tmp_path: Path) -> None:
    model, tokenizer = load_language_model(ASSETS)
    model.float().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = load_modules(ASSETS / "held_out.jsonl.gz")[0].text
    ids = tokenizer(text, return_tensors="pt").input_ids[0, :2048].reshape(16, 128)
    batch = {"input_ids": ids, "concept_labels": (ids % 7 == 0).long() + (ids % 5 == 0).long()}
    scrubber = lf.scrub(model, [batch])
    scrubber.save_pretrained(tmp_path / "erasers")
    given = ("--erasers", tmp_path / "erasers", "--max-cost-ratio", 9, "--device", "cpu")
    for command, *more in (("fold", "--add-bias"), ("export-lora", "--with-model")):
        result = run(command, tmp_path / "model", *given, *more, "--out", tmp_path / command)
        assert result.exit_code == 0, result.output
    maps = lf.Scrubber({site: each.without_offset(9) for site, each in scrubber.items()})
    prompts = [text[:60], "def function(value):\n    return", "import os\n\nclass Reader:\n"]
    clean = [continued(model, tokenizer, prompt) for prompt in prompts]
    with scrubber.attached(model):
        affine = [continued(model, tokenizer, prompt) for prompt in prompts]
    with maps.attached(model):
        linear = [continued(model, tokenizer, prompt) for prompt in prompts]
    assert clean != affine and clean != linear
    for folder, wanted in (("model", clean), ("fold", affine), ("export-lora", linear)):
        assert [completed(server, tmp_path / folder, prompt) for prompt in prompts] == wanted, folder
