"""llama.cpp in a process of its own, through its prebuilt binding.

As a program it reads {"model", "lora", "prompts", "texts"} as JSON. It writes the log-probabilities of the token after
each prompt, or where there is none the tokens of each text.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


def log_probabilities(model: Path, prompts: list[list[int]], lora: Path | None = None) -> Tensor:
    """Return (prompts, vocabulary); skips where the binding cannot be had or does not run on this processor."""
    return torch.tensor(answer(model, prompts=prompts, lora=lora and str(lora)))


def tokens(model: Path, texts: list[str]) -> list[list[int]]:
    """Return the tokens of texts; skips as `log_probabilities`."""
    return answer(model, texts=texts)


def answer(model: Path, **asked: Any) -> Any:
    from extra_packages import environment

    command = [sys.executable, __file__]
    variables = environment("xllamacpp")
    done = subprocess.run(
        command,
        input=json.dumps({"model": str(model), **asked}),
        capture_output=True,
        text=True,
        env=variables,
        timeout=300,
    )
    if done.returncode == -4:  # SIGILL
        pytest.skip("the prebuilt llama.cpp needs instructions that this processor lacks")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def serve(asked: dict[str, Any]) -> list[Any]:
    import xllamacpp as llama  # type: ignore[import-not-found]

    params = llama.CommonParams()
    params.model.path = asked["model"]
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 256, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # keys and values in float32: in half precision, which is the default, they alone move the output by 5e-3
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    if asked.get("lora"):
        params.lora_adapters = [llama.CommonAdapterLoraInfo(asked["lora"], 1.0)]
    server = llama.Server(params)
    if "prompts" not in asked:
        return [_tokens(server, text) for text in asked["texts"]]
    return [_next(server, prompt) for prompt in asked["prompts"]]


def _tokens(server: Any, text: str) -> list[int]:
    asked = {"content": text, "add_special": True, "parse_special": True}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{server.listening_address}/tokenize", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answered:
        return json.load(answered)["tokens"]


def _next(server: Any, prompt: list[int]) -> list[float]:
    most = 1 << 20  # all tokens
    request = {"prompt": prompt, "max_tokens": 1, "logprobs": most, "temperature": 0.0, "cache_prompt": False}
    answer = server.handle_completions(request)
    answer = json.loads(answer) if isinstance(answer, str) else answer
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    by_token = {each["id"]: each["logprob"] for each in found}
    assert len(by_token) == len(found)
    return [by_token[token] for token in range(len(found))]


if __name__ == "__main__":
    print(json.dumps(serve(json.load(sys.stdin))))
