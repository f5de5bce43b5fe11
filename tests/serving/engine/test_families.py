"""Families of models whose norms differ: every request erased, as transformers erases them."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import served
import torch

import leace_fast as lf

MOST = 1e-4
SIZES: dict[str, Any] = {
    "vocab_size": served.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": served.VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "layer norms, in parallel": ("GPTNeoX", SIZES),
    "layer norms, in turn": ("GPT2", {**GPT2, "bos_token_id": 0, "eos_token_id": 0}),
    "norms of queries and keys": ("Qwen3", {**SIZES, "num_key_value_heads": 1, "head_dim": 32}),
    "biases before attention": ("Qwen2", {**SIZES, "num_key_value_heads": 1}),
    "norms behind, and weights plus one": ("Gemma3", {**SIZES, "num_key_value_heads": 1, "head_dim": 32}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_request_erased(folder: Path, tmp_path: Path, family: str) -> None:
    name, sizes = FAMILIES[family]
    transformers: Any = importlib.import_module("transformers")
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(**sizes)
    kind = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.normal_(0, 0.15) if part.ndim > 1 else part.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path / "model")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "model" / file, tmp_path / "model" / file)
    ids = [torch.randint(1, served.VOCABULARY, (16, 64)) for _ in range(4)]
    scrubber = lf.scrub(model, [{"input_ids": each, "concept_labels": each % 4} for each in ids])
    scrubber.save_pretrained(tmp_path / "erasers")

    asked = served.prompts(6)
    work = {"settings": served.entry(tmp_path, "erasers"), "model": str(tmp_path / "model"), "eager": True}
    results = served.run({**work, "batches": [[(each, None) for each in asked]]})
    assert isinstance(results, list), results
    assert max(served.distance(model, scrubber, *each) for each in zip(asked, results, strict=True)) < MOST
    assert max(served.distance(model, None, *each) for each in zip(asked, results, strict=True)) > 1e-2
