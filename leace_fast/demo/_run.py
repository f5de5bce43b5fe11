"""The demo: erase the lexical category of tokens from a small language model of Python code, and look."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._progress import Track, untracked
from ..data import batched
from ..methods import leace
from ..models import multiplies
from ..scrubbing import Scrubber, scrub
from ..study import Clock, Study, load_model, load_tokenizer, run_study
from ._corpus import ASSETS, CATEGORIES, Module, load_modules
from ._language_model import windows

CONCEPT = "the lexical category"
CONTEXT = 1024
BATCH = 8
CONTRASTS = 5
PROBE_ROWS = 6000
RANDOM_SEEDS = 3
HELD_OUT, LIBRARY = "held_out.jsonl.gz", "library.jsonl.gz"


class Demo(NamedTuple):
    """The demo's model, its three sets of modules, and their batches, with the number of its module for each sequence.

    Attributes:
        model: of the language.
        modules: of the model's held-out ones half `fit` and half `fresh`; of those that it was trained on `library`,
            the middle of each.
        fit: whole modules.
        many: the same, and those of the library.
        fresh: whole modules that no eraser is fitted on.
    """

    model: Any
    modules: dict[str, list[Module]]
    fit: list[dict[str, Tensor]]
    many: list[dict[str, Tensor]]
    fresh: list[dict[str, Tensor]]

    @property
    def text_bytes(self) -> int:
        """Bytes of the fresh modules."""
        return sum(len(module.text.encode()) for module in self.modules["fresh"])


def fits(name: str) -> bool:
    """Tell whether a held-out module is one to fit on, by a hash of its name; the others are evaluated."""
    return hashlib.sha256(name.encode()).digest()[7] % 2 == 1


def run_demo(
    assets: str | os.PathLike[str] = ASSETS, *, track: Track = untracked, random_seeds: int = RANDOM_SEEDS
) -> tuple[Study, dict[str, Any]]:
    """Run the study on the demo's model and return it with the facts that its report states.

    The modules that the model was not trained on are split by a hash of their name: half are fitted on, half are fresh.
    Erasers are fitted on few modules, on many with few tokens each, and on many with contrasts. Everything is measured
    on the fresh ones, whole modules in windows of 1024 tokens without overlap.

    Args:
        assets: folder with `model/`, `held_out.jsonl.gz` and `library.jsonl.gz`.
        track: as in `run_study`.
        random_seeds: number of random erasures to compare with.

    Raises:
        FileNotFoundError: the folder lacks the model or a text.
        ValueError: one of these is damaged.
    """
    clock = Clock()
    with clock.stage("load"):
        demo = load_demo(assets)
    with clock.stage("scrub"):
        variants = scrub_demo(demo, track)
    study = run_study(
        demo.model,
        variants,
        demo.fresh,
        class_names=CATEGORIES,
        text_bytes=demo.text_bytes,
        main=list(variants)[1],
        group="module",
        same_groups=True,
        probe_rows=PROBE_ROWS,
        random_seeds=random_seeds,
        track=track,
        clock=clock,
    )
    facts = {
        "concept": "lexical category of each token, from tokenize",
        "model": {
            "parameters": sum(parameter.numel() for parameter in demo.model.parameters()),
            "dtype": str(demo.model.dtype).removeprefix("torch."),
            "window": CONTEXT,
        },
        "data": {
            **{f"{part}_modules": [module.name for module in modules] for part, modules in demo.modules.items()},
            "fresh_bytes": demo.text_bytes,
        },
        "machine": machine(),
    }
    return study, facts


def scrub_demo(demo: Demo, track: Track = untracked) -> dict[str, Scrubber]:
    """Fit the demo's variants: few modules, many with few tokens each, and many with contrasts."""
    few = len(demo.modules["fit"])
    many = few + len(demo.modules["library"])
    options: dict[str, Any] = {"num_classes": len(CATEGORIES), "track": track}
    with_contrasts = functools.partial(leace, contrasts=CONTRASTS)
    return {
        f"{few} modules": scrub(demo.model, _inputs(demo.fit), **options),
        f"{many} modules": scrub(demo.model, _inputs(demo.many), **options),
        f"{many} modules, {CONTRASTS} contrasts": scrub(
            demo.model, _inputs(demo.many), method=with_contrasts, **options
        ),
    }


def _inputs(batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Batches without the tokens to predict."""
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]


def load_language_model(assets: Path) -> tuple[Any, Any]:
    """Return the demo's model and its tokenizer; where bfloat16 has no products here, the model is in float32."""
    source, dtype = str(assets / "model"), "auto" if multiplies(torch.bfloat16) else "float32"
    model = load_model(source, "cpu", dtype)
    model.config.use_cache = False
    return model, load_tokenizer(source)


def load_demo(assets: str | os.PathLike[str] = ASSETS) -> Demo:
    """Return the demo's model and its batches.

    Raises:
        FileNotFoundError: the folder lacks the model or a text.
        ValueError: one of these is damaged.
    """
    assets = Path(assets)
    for needed in (assets / "model" / "config.json", assets / HELD_OUT, assets / LIBRARY):
        if not needed.is_file():
            raise FileNotFoundError(f"no file {needed}, expected the demo's model and texts in {assets}")
    model, tokenizer = load_language_model(assets)
    held_out, library = load_modules(assets / HELD_OUT), load_modules(assets / LIBRARY)
    fit, fresh = ([module for module in held_out if fits(module.name) == side] for side in (True, False))
    many, number = [*fit, *library], itertools.count()
    numbers = {module.name: next(number) for module in [*many, *fresh]}
    modules = {"fit": fit, "library": library, "fresh": fresh}
    return Demo(model, modules, *(batches_of(part, tokenizer, numbers) for part in (fit, many, fresh)))


def machine() -> dict[str, Any]:
    """Return the versions and the processor that figures were measured with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }


def batches_of(
    modules: Sequence[Module], tokenizer: Any, numbers: Mapping[str, int] | None = None
) -> list[dict[str, Tensor]]:
    """Return modules as batches of windows without overlap, with `concept_labels`, `labels` and `concept_groups`.

    Args:
        modules: each whole, or a part of one.
        tokenizer: of the model.
        numbers: of the modules by name, their groups; None for their places.
    """
    numbers = numbers or {module.name: place for place, module in enumerate(modules)}
    pieces = [
        window._replace(group=numbers[module.name])
        for module in modules
        for window in windows(module, tokenizer, CONTEXT)
    ]
    return list(batched(pieces, BATCH, tokenizer.pad_token_id))
