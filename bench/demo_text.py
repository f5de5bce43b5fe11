"""The demo's model and text for benchmarks: modules to fit on and fresh ones, each token with its module as a group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leace_fast.data import batched
from leace_fast.demo import ASSETS, Module, fits, load_modules
from leace_fast.demo._language_model import windows
from leace_fast.models import GROUPS, multiplies

CONTEXT, BATCH = 1024, 8
HELD_OUT = "held_out.jsonl.gz"


class Text(NamedTuple):
    """The demo's model, its tokenizer, and modules that the model was not trained on: half to fit on, half fresh."""

    model: Any
    tokenizer: Any
    fit: list[Module]
    fresh: list[Module]

    def batches(self, fresh: bool) -> list[dict[str, Tensor]]:
        """The windows of one half, with the number of its module for each."""
        modules, first = (self.fresh, len(self.fit)) if fresh else (self.fit, 0)
        return batches_of(modules, self.tokenizer, first)

    @property
    def fresh_bytes(self) -> int:
        return sum(len(module.text.encode()) for module in self.fresh)


def load_text(assets: Path = ASSETS) -> Text:
    """Return the model and the modules of an assets folder, split as the demo splits them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets / "model")
    dtype = "auto" if multiplies(torch.bfloat16) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(assets / "model", dtype=dtype).eval()
    model.config.use_cache = False
    modules = load_modules(assets / HELD_OUT)
    fit, fresh = ([module for module in modules if fits(module.name) == side] for side in (True, False))
    return Text(model, tokenizer, fit, fresh)


def batches_of(modules: Sequence[Module], tokenizer: Any, first: int) -> list[dict[str, Tensor]]:
    """Return whole modules as batches of windows of like length; `concept_groups` numbers the modules from `first`."""
    pieces = [
        (first + place, window)
        for place, module in enumerate(modules)
        for window in windows(module, tokenizer, CONTEXT)
    ]
    pieces.sort(key=lambda piece: -len(piece[1].input_ids))  # as `batched` sorts, so that the groups fit
    made = []
    for begin in range(0, len(pieces), BATCH):
        groups, chunk = zip(*pieces[begin : begin + BATCH], strict=True)
        (batch,) = batched(chunk, BATCH, tokenizer.pad_token_id)
        made.append({**batch, GROUPS: torch.tensor(groups)})
    return made
