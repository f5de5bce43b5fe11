"""The demo's model and text for benchmarks that probe: modules to fit on, and fresh ones.

Probes are trained on fresh modules, and tested in two ways: on other fresh modules, each half of them once, and on
other windows of the same modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from leace_fast.demo import ASSETS, Module, batches_of, fits, load_language_model, load_modules

HELD_OUT = "held_out.jsonl.gz"


class Text(NamedTuple):
    """The demo's model, its tokenizer, and modules it was not trained on: some to fit on, the rest fresh."""

    model: Any
    tokenizer: Any
    fit: list[Module]
    fresh: list[Module]

    @property
    def numbers(self) -> dict[str, int]:
        """The groups: a number for each module."""
        return {module.name: number for number, module in enumerate([*self.fit, *self.fresh])}

    @property
    def halves(self) -> tuple[list[Module], list[Module]]:
        """The fresh modules, every other one."""
        return self.fresh[::2], self.fresh[1::2]

    def batches(self, modules: Sequence[Module]) -> list[dict[str, Tensor]]:
        """Whole modules as batches of windows of like length, with `concept_groups`."""
        return batches_of(modules, self.tokenizer, self.numbers)

    @property
    def fresh_bytes(self) -> int:
        return sum(len(module.text.encode()) for module in self.fresh)


def load_text(assets: Path = ASSETS) -> Text:
    """Return the model and the modules of an assets folder, split as the demo splits them."""
    model, tokenizer = load_language_model(assets)
    modules = load_modules(assets / HELD_OUT)
    fit, fresh = ([module for module in modules if fits(module.name) == side] for side in (True, False))
    return Text(model, tokenizer, fit, fresh)


class Reading(NamedTuple):
    """What probes read: means over all test rows."""

    accuracy: float
    constant: float
    nats: float

    @classmethod
    def of(cls, probes: Sequence[Mapping[str, Any]]) -> Reading:
        """Return the means of some probes, as dictionaries, by their test rows."""
        rows = sum(probe["test_rows"] for probe in probes)
        return cls(*(sum(probe[name] * probe["test_rows"] for probe in probes) / rows for name in cls._fields))
