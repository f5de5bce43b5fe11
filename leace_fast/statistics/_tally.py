"""What some `Moments` know of their rows beside the sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ._kind import Kind
from ._rows import IGNORE

# What only a device sees, by the name under which it is counted there.
MISTAKES = {
    "label": "had a label out of range, expected 0 to {most}, or {ignore} for rows to leave out",
    "mask": "had a mask other than 0 and 1, use weight= for weights",
    "weight": "had a weight that is not 0 nor 1e-30 to 1e30, only ratios of weights count",
}


@dataclass(frozen=True)
class Tally:
    """Rows that were left out, the rounding of those that were not, and the states that were taken away again."""

    skipped: int = 0  # rows that were not finite
    relative_error: float = 0.0  # the largest of any rows
    removed: Counter[str] = field(default_factory=Counter)  # by fingerprint
    mistaken: Counter[str] = field(default_factory=Counter)  # rows that were no rows to use, met on a device

    def pooled(self) -> Tally:
        """Return what is known of the same rows without their labels: what was taken away from them is another kind."""
        return Tally(self.skipped, self.relative_error)

    def with_rows(self, skipped: int, relative_error: float) -> Tally:
        """Return the tally after rows, of which some were left out, and which were rounded so."""
        if not skipped and relative_error <= self.relative_error:
            return self
        error = max(self.relative_error, relative_error)
        return replace(self, skipped=self.skipped + skipped, relative_error=error)

    def merged(self, other: Tally, fingerprint: Callable[[], str]) -> Tally:
        """Return the tally after the rows of other moments were added, which may have been removed before.

        What was removed from those is not in the sum either. The fingerprint is made only where it may count.
        """
        tally, removed = self.with_rows(other.skipped, other.relative_error), self.removed + other.removed
        return replace(tally, removed=removed - Counter([fingerprint()])) if removed else tally

    def without(self, other: Tally, fingerprint: str | None) -> Tally:
        """Return the tally after the rows of other moments were taken away, if there were any."""
        skipped, removed = max(self.skipped - other.skipped, 0), self.removed - other.removed
        return replace(self, skipped=skipped, removed=removed + Counter([fingerprint] if fingerprint else []))

    def with_counts(self, counts: Mapping[str, int]) -> Tally:
        """Return the tally with what a device counted, by reason."""
        skipped = self.skipped + counts["infinite"] + counts["target"]
        mistaken = self.mistaken + Counter({what: counts[what] for what in MISTAKES})
        return replace(self, skipped=skipped, mistaken=mistaken)

    def check(self, kind: Kind) -> None:
        """Raise ValueError if rows were met on a device that were no labels, masks or weights."""
        if self.mistaken:
            most = (kind.num_classes or 1) - 1
            found = [f"{n} {MISTAKES[what].format(most=most, ignore=IGNORE)}" for what, n in self.mistaken.items()]
            raise ValueError(f"of the rows that were added, {'; '.join(found)}: these were left out, begin anew")

    def header(self) -> dict[str, Any]:
        """Return what a file keeps."""
        return {"skipped": self.skipped, "relative_error": self.relative_error, "removed": dict(self.removed)}

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Tally:
        """Return what a file kept."""
        return cls(header["skipped"], header["relative_error"], Counter(header["removed"]))
