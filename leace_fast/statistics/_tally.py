"""What some `Moments` know of their rows beside the sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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


@dataclass
class Tally:
    """Rows that were left out, the rounding of those that were not, and the states that were taken away again."""

    skipped: int = 0  # rows that were not finite
    relative_error: float = 0.0  # the largest of any rows
    removed: Counter[str] = field(default_factory=Counter)  # by fingerprint
    mistaken: Counter[str] = field(default_factory=Counter)  # rows that were no rows to use, met on a device

    def copy(self) -> Tally:
        """Return a tally that shares nothing with this one."""
        return replace(self, removed=self.removed.copy(), mistaken=self.mistaken.copy())

    def pooled(self) -> Tally:
        """Return what is known of the same rows without their labels: what was taken away from them is another kind."""
        return Tally(self.skipped, self.relative_error)

    def note_error(self, relative_error: float) -> None:
        """Note how rows were rounded."""
        self.relative_error = max(self.relative_error, relative_error)

    def merge(self, other: Tally) -> None:
        """Note that the rows of other moments were added."""
        self.skipped += other.skipped
        self.note_error(other.relative_error)

    def restore(self, fingerprint: str) -> None:
        """Note that a state was added again after it was removed."""
        self.removed -= Counter([fingerprint])

    def take(self, counts: Mapping[str, int]) -> None:
        """Take over what a device counted, by reason."""
        self.skipped += counts["infinite"] + counts["target"]
        self.mistaken += Counter({what: counts[what] for what in MISTAKES})

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
