"""The demo's assets with a tiny model and a few small modules."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from leace_fast.demo import Module
from leace_fast.demo._corpus import save_modules
from leace_fast.demo._language_model import train_tokenizer

SOURCE = '''# Module {i}
import os

def function_{i}(value, other={i}):
    """Return a string {i} times."""
    if value is None:
        return "nothing" * other
    return os.path.join("root", value) + str({i}0)
'''


def write_assets(folder: Path) -> Path:
    """Write an untrained model, its tokenizer, twelve modules and parts of eight others to a folder, and return it."""
    folder.mkdir(exist_ok=True)
    modules = [Module(f"module_{i}", SOURCE.format(i=i) * 20) for i in range(12)]
    save_modules(modules, folder / "held_out.jsonl.gz")
    save_modules([Module(f"library_{i}", SOURCE.format(i=i) * 2) for i in range(8)], folder / "library.jsonl.gz")
    tokenizer = train_tokenizer([module.text for module in modules], 320)
    tokenizer.save_pretrained(folder / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=1024, bos_token_id=0, eos_token_id=0, pad_token_id=0,
            )
        )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(folder / "model")  # type: ignore[arg-type]
    return folder
