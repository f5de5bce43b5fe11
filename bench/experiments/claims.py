"""What an experiment hands back: claims that were set before it ran, each beside its figure, and tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Claim:
    """A sentence, the bounds that it stands for, and what was measured.

    >>> Claim("INLP of rank 1 leaves gender", 0.93, at_least=0.95).held
    False
    >>> Claim("INLP of rank 1 leaves gender", 0.93, at_least=0.95).bounds
    'at least 0.95'
    """

    text: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None
    digits: int = 3

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the claim {self.text!r} has no bound: it could not fail")

    @property
    def held(self) -> bool:
        """Whether the figure, unrounded, lies within the bounds; one that is not a number does not."""
        low = float("-inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= self.measured <= high

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        if self.at_least is None:
            return f"at most {self.at_most:.4g}"
        if self.at_most is None:
            return f"at least {self.at_least:.4g}"
        return f"{self.at_least:.4g} to {self.at_most:.4g}"

    @property
    def figure(self) -> str:
        """What was measured, as the page shows it."""
        return f"{self.measured:.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """Figures beside the claims: a title, a heading, and rows of text."""

    title: str
    heading: list[str]
    rows: list[list[str]]


@dataclass
class Result:
    """All that an experiment found.

    Attributes:
        title: its heading on the page.
        sizes: what was fitted, trained and tested on, by name.
        claims, tables: as above.
        series: figures that a picture is drawn from.
        seconds: how long it ran.
    """

    title: str
    sizes: dict[str, int | float | str] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return it as plain lists and dictionaries; whether a claim held is not among them: it follows."""
        return asdict(self)

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Result:
        """Return what `as_json` was taken of."""
        claims = [Claim(**claim) for claim in found["claims"]]
        tables = [Table(**table) for table in found["tables"]]
        return cls(found["title"], found["sizes"], claims, tables, found["series"], found["seconds"])


def percent(share: float, digits: int = 1) -> str:
    """Return a share as text.

    >>> percent(0.5034)
    '50.3 %'
    """
    return f"{100 * share:.{digits}f} %"
