"""The demo: erase the lexical category of tokens from a small language model of Python code, and look."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._extras import optional
from .._progress import Track, untracked
from ..data import batched
from ..models import multiplies
from ..study import Clock, Study, run_study
from ._corpus import ASSETS, CATEGORIES, Module, load_modules
from ._language_model import windows

CONCEPT = "the lexical category"
CONTEXT = 1024
BATCH = 8


def fits(name: str) -> bool:
    """Tell whether a held-out module is one to fit on, by a hash of its name; the others are evaluated."""
    return hashlib.sha256(name.encode()).digest()[7] % 2 == 1


def run_demo(
    assets: str | os.PathLike[str] = ASSETS, *, track: Track = untracked, random_seeds: int = 5
) -> tuple[Study, dict[str, Any]]:
    """Run the study on the demo's model and return it with the facts that its report states.

    The modules that the model was not trained on are split by a hash of their
    name: erasers and probes are fitted on one part, and everything is measured
    on the other, whole modules in windows of 1024 tokens without overlap.

    Args:
        assets: folder with `model/` and `held_out.jsonl.gz`.
        track: as in `run_study`.
        random_seeds: number of random erasures to compare with.

    Raises:
        FileNotFoundError: the folder lacks the model or the text.
    """
    clock = Clock()
    with clock.stage("load"):
        model, fit, test, modules = load_demo(assets)
    fit_modules, held_out = modules
    text_bytes = sum(len(module.text.encode()) for module in held_out)
    study = run_study(
        model,
        fit,
        test,
        class_names=CATEGORIES,
        text_bytes=text_bytes,
        random_seeds=random_seeds,
        track=track,
        clock=clock,
    )
    facts = {
        "concept": "lexical category of each token, from tokenize",
        "model": {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "window": CONTEXT,
        },
        "data": {
            "fit_modules": [module.name for module in fit_modules],
            "held_out_modules": [module.name for module in held_out],
            "held_out_bytes": text_bytes,
        },
        "machine": machine(),
    }
    return study, facts


def load_demo(
    assets: str | os.PathLike[str] = ASSETS,
) -> tuple[Any, list[dict[str, Tensor]], list[dict[str, Tensor]], tuple[list[Module], list[Module]]]:
    """Return the demo's model, the batches to fit on, those to measure on, and the modules of both.

    Raises:
        FileNotFoundError: the folder lacks the model or the text.
    """
    with optional("the demo needs transformers"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

    assets = Path(assets)
    for needed in (assets / "model" / "config.json", assets / "held_out.jsonl.gz"):
        if not needed.is_file():
            raise FileNotFoundError(f"no file {needed}, expected the demo's model and held-out text in {assets}")
    tokenizer = AutoTokenizer.from_pretrained(assets / "model")
    dtype = "auto" if multiplies(torch.bfloat16) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(assets / "model", dtype=dtype).eval()
    model.config.use_cache = False
    modules = load_modules(assets / "held_out.jsonl.gz")
    fit_modules, held_out = ([m for m in modules if fits(m.name) == side] for side in (True, False))
    return model, batches_of(fit_modules, tokenizer), batches_of(held_out, tokenizer), (fit_modules, held_out)


def machine() -> dict[str, Any]:
    """Return the versions and the processor that figures were measured with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }


def batches_of(modules: Sequence[Module], tokenizer: Any) -> list[dict[str, Tensor]]:
    """Return whole modules as batches of windows without overlap, with `concept_labels` and `labels`."""
    pieces = [window for module in modules for window in windows(module, tokenizer, CONTEXT)]
    return list(batched(pieces, BATCH, tokenizer.pad_token_id))
