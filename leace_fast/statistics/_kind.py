"""What some `Moments` are, whatever rows they hold: one record, which files keep too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

Precision = Literal["low", "high", "ieee"]
NonFinite = Literal["raise", "skip"]

MOST_DIM = 2**20  # beyond it no machine holds a second moment


@dataclass(frozen=True)
class Kind:
    """What some `Moments` are; the arguments are theirs.

    Two that compare equal can be merged: how rows are multiplied, and what is done about those that are not finite,
    does not count.

    Raises:
        ValueError: an argument is out of range, or both of `num_classes` and `target_dim` are given.

    >>> Kind(8, num_classes=2) == Kind(8, num_classes=2, precision="low")
    True
    """

    dim: int
    num_classes: int | None = None
    target_dim: int | None = None
    per_class: bool = False
    precision: Precision = field(default="high", compare=False)
    nonfinite: NonFinite = field(default="raise", compare=False)

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.target_dim is not None:
            raise ValueError(
                f"got num_classes={self.num_classes} and target_dim={self.target_dim}, expected one of them: "
                "num_classes for integer labels, target_dim for real-valued targets, neither for x alone"
            )
        for name, least in (("dim", 1), ("num_classes", 2), ("target_dim", 1)):
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < least):
                raise ValueError(f"{name} is {size!r}, expected an integer of at least {least}")
        if self.dim > MOST_DIM:
            raise ValueError(f"dim is {self.dim}, expected at most {MOST_DIM}: a second moment takes 8 dim^2 bytes")
        if self.per_class and self.num_classes is None:
            raise ValueError("per_class=True needs num_classes: without it there are no classes")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is {self.precision!r}, expected one of {get_args(Precision)}")
        if self.nonfinite not in get_args(NonFinite):
            raise ValueError(f"nonfinite is {self.nonfinite!r}, expected 'raise' or 'skip'")

    @property
    def is_plain(self) -> bool:
        """Whether rows of x are summed alone, without labels or targets."""
        return self.num_classes is None and self.target_dim is None

    @property
    def labels(self) -> int | None:
        """The number of classes that rows are summed by, one where they have no labels; None for targets."""
        return 1 if self.is_plain else self.num_classes

    @property
    def sizes(self) -> tuple[int, int, int, bool]:
        """Columns, classes (one of all rows where there are none), targets (0 for classes), `per_class`."""
        return self.dim, self.num_classes or 1, self.target_dim or 0, self.per_class

    def header(self) -> dict[str, Any]:
        """Return what a file says of the kind."""
        return asdict(self)

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Kind:
        """Return the kind that a file tells of; a file from before `precision` was kept has the default."""
        names = [part.name for part in fields(cls)]
        if missing := [name for name in names if name not in header and name != "precision"]:
            raise ValueError(f"its header lacks {', '.join(missing)}")
        return cls(**{name: header[name] for name in names if name in header})

    def check_same(self, other: Kind) -> None:
        """Raise ValueError, naming what differs, if moments of the two kinds cannot be merged."""
        for name in (part.name for part in fields(self) if part.compare):
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                raise ValueError(f"the moments differ in {name}: {here} here, {there} there")
