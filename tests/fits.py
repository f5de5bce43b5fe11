"""A method whose erasers the laws share: the same rows are fitted once, and no law may change what it is given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import Case, Data
from torch import Tensor

from leace_fast import Eraser


@dataclass(frozen=True)
class Shared(Case):
    """A method that fits the same rows with the same labels once."""

    erasers: dict[bytes, tuple[Eraser, list[Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case) -> Shared:
        return cls(**vars(case))

    def on(self, data: Data, x: Tensor | None = None) -> Eraser:
        key = digest(data, data.x if x is None else x)
        if key not in self.erasers:
            eraser = super().on(data, x)
            self.erasers[key] = eraser, contents(eraser)
        return self.erasers[key][0]

    def check(self) -> None:
        """Hold the erasers that were handed out to what they were when they were fitted."""
        for eraser, fitted in self.erasers.values():
            for old, new in zip(fitted, contents(eraser), strict=True):
                same = torch.equal(old, new) if isinstance(old, Tensor) else old == new
                assert same, f"an eraser of {self.name} that is shared was changed: {old} became {new}"


def digest(data: Data, x: Tensor) -> bytes:
    """Return what tells rows with labels, a mask and weights apart from others, to the bit."""
    found = hashlib.blake2b(repr(data.options).encode())
    for part in (x, data.y, data.mask, data.weight):
        if part is not None:
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.digest()


def contents(eraser: Eraser) -> list[Any]:
    """Return copies of all that an eraser holds."""
    held = [eraser.left, eraser.right, eraser.mean, eraser.mean_solve, eraser.report, repr(eraser)]
    return [torch.empty(0) if part is None else part for part in held]
