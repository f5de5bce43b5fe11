"""A small model, its erasers, and engines of vLLM that serve them, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import leace_fast as lf
from leace_fast.serving import digest_of_folder

HERE = Path(__file__).parent
VOCABULARY = 272
SECONDS = 500  # that an engine may take, on a busy machine
ONE_CORE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def make(folder: Path) -> None:
    """Write a model of Llama's kind with large weights, its tokenizer, and two scrubbers of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<s>": 0, **{letter: i for i, letter in enumerate(letters, 1)}}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    words = {"bos_token": "<s>", "eos_token": "<s>", "pad_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **words).save_pretrained(folder / "model")
    sizes: Any = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids: Any = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": False}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, max_position_embeddings=512, **sizes, **ids)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.normal_(0, 0.2) if part.ndim > 1 else part.uniform_(0.5, 1.5)
    model.save_pretrained(folder / "model")
    for name, classes in (("one", 5), ("two", 3)):
        ids = [torch.randint(1, VOCABULARY, (16, 64)) for _ in range(8)]
        scrubber = lf.scrub(model, [{"input_ids": each, "concept_labels": each % classes} for each in ids])
        scrubber.save_pretrained(folder / name)


def entry(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """What the settings say of a scrubber."""
    return {"path": str(folder / name), "digest": digest_of_folder(folder / name), **more}


def by_request(folder: Path, default: str = "none") -> dict[str, Any]:
    """Settings by which requests choose among both scrubbers."""
    return {
        "erasers": {"one": entry(folder, "one", strengths=[1.0, 0.5]), "two": entry(folder, "two")},
        "default": default,
    }


def prompts(count: int, least: int = 3, most: int = 60, seed: int = 1) -> list[list[int]]:
    """Prompts of token ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(least, most, (count,), generator=generator).tolist()
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def run(work: dict[str, Any], env: dict[str, str] | None = None) -> Any:
    """Run batches through an engine; returns for each prompt its tokens and their log-probabilities, or what it said.

    Args:
        work: settings (or None), model, eager, batches of (prompt, choice), and mutation, of `serve_once.py`.
        env: variables of its environment.
    """
    command = [sys.executable, str(HERE / "serve_once.py"), json.dumps(work)]
    environment = {**os.environ, **ONE_CORE, "VLLM_LOGGING_LEVEL": "ERROR", **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=HERE)
    said = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(said[-1][7:]) if done.returncode == 0 and said else done.stdout[-6000:] + done.stderr[-12000:]


def distance(model: Any, scrubber: lf.Scrubber | None, prompt: list[int], result: list[Any]) -> float:
    """How far log-probabilities of an engine are from those of the model in transformers, after the same tokens."""
    tokens, tops = result
    ids = torch.tensor([prompt + tokens])
    with torch.no_grad():
        if scrubber is None:
            logits = model(ids).logits
        else:
            with scrubber.attached(model):
                logits = model(ids).logits
    wanted = logits[0, len(prompt) - 1 :].log_softmax(-1)
    return max(abs(float(wanted[i, int(token)]) - value) for i, top in enumerate(tops) for token, value in top.items())
