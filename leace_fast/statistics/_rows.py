"""Rows on their way into `Moments`: flat, and staged into blocks of a fixed size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ._at_once import Step
from ._block_sums import copying

PARTS = ("x", "labels", "targets", "weight", "groups")
IGNORE = -100  # the label of rows to leave out, as in torch's losses


@dataclass
class Rows:
    """Valid finite rows x (n, d), with labels (n,) int64 or targets (n, t) float64, and weights (n,) float64 or None.

    Groups (n,) int64 or None say which text, speaker or module each row comes from.

    As a staging buffer it is allocated for a whole block, of which `used` rows are filled.
    """

    x: Tensor
    labels: Tensor | None
    targets: Tensor | None
    weight: Tensor | None
    used: int
    groups: Tensor | None = None

    def __len__(self) -> int:
        return self.used

    def _map(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in PARTS}
        return {name: None if part is None else change(part) for name, part in parts.items()}

    def part(self, begin: int, end: int) -> Rows:
        """Return the rows begin..end, as views."""
        return Rows(**self._map(lambda part: part[begin:end]), used=end - begin)

    def where(self, keep: Tensor) -> Rows:
        """Return the rows that a mask (n,) names."""
        index = keep.nonzero().flatten()
        if len(index) == len(self):
            return self
        return Rows(**self._map(lambda part: part[index]), used=len(index))

    def fits(self, other: Rows) -> bool:
        """Tell whether rows of the same dtype and kind of weight wait here."""
        return self.x.dtype == other.x.dtype and (self.weight is None) == (other.weight is None)

    def staging(self, block: int) -> Rows:
        """Return an empty buffer for a block of rows of this kind."""
        return Rows(**self._map(lambda part: part.new_empty(block, *part.shape[1:])), used=0)

    def copying(self, rows: Rows, begin: int, count: int) -> list[Step]:
        """Return what copies rows from `begin` on into this buffer, behind those that it holds."""
        free, taken = slice(self.used, self.used + count), slice(begin, begin + count)
        pairs = ((getattr(self, name), getattr(rows, name)) for name in PARTS)
        return [copying(place[free], part[taken]) for place, part in pairs if part is not None]

    def with_used(self, used: int) -> Rows:
        """Return the same buffer, of which other rows count."""
        return Rows(self.x, self.labels, self.targets, self.weight, used, self.groups)

    @property
    def room(self) -> int:
        """Rows that are free."""
        return self.x.shape[0] - self.used

    @property
    def is_full(self) -> bool:
        """Whether a block is complete."""
        return self.used == self.x.shape[0]

    def filled(self) -> Rows:
        """Return the rows that are filled, as views."""
        return self.part(0, self.used)

    def copy(self) -> Rows:
        """Return a buffer that shares nothing with this one."""
        return Rows(**self._map(Tensor.clone), used=self.used)
