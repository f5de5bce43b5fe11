"""What a method did and what it could not do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """How an eraser was fitted.

    Attributes:
        method: name of the method.
        dim: width of x.
        rank: rank of the erasure.
        rows: rows that it was fitted on.
        change: mean squared change of x on the data fitted; by `leace`, were its covariance the shrunk one.
        ridge: added to the diagonal of the correlation matrix.
        shrinkage: weight of the identity in the correlation matrix, 0 for none.
        smallest_eigenvalue: of the correlation matrix that was factored, estimated; 1 if the method needs none.
        error_bound: rounding error of the second moment over that eigenvalue: how far from least change the
            eraser may be, relative. It does not touch what is erased.
        cost_ratio: that change over the change of the affine eraser; 1 for the affine eraser itself.
        not_erased: each class or direction that was not erased, and why.
        concepts: what was erased of each of several concepts.

    Source: docs/methods.md; `change` and `cost_ratio` as in Belrose et al. 2023, https://arxiv.org/abs/2306.03819,
        equations 2 and 3.

    >>> print(Report("leace", dim=8, rank=1, rows=1000, change=0.25, not_erased=("class 2: it has no rows",)))
    leace: rank 1 of 8 dimensions, from 1,000 rows
      mean squared change 0.25
      not erased: class 2: it has no rows
    """

    method: str
    dim: int
    rank: int
    rows: int
    change: float
    ridge: float = 0.0
    shrinkage: float = 0.0
    smallest_eigenvalue: float = 1.0
    error_bound: float = 0.0
    cost_ratio: float = 1.0
    not_erased: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON.

        Source: `dataclasses.asdict`.

        >>> Report("leace", dim=8, rank=1, rows=1000, change=0.25).to_dict()["rank"]
        1
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Return the report that `to_dict` wrote.

        Args:
            values: what it wrote, also after a way through JSON.

        Raises:
            TypeError: a name is missing or unknown.

        Source: `dataclasses.asdict`.

        >>> report = Report("leace", dim=8, rank=1, rows=1000, change=0.25, not_erased=("class 2: it has no rows",))
        >>> Report.from_dict(report.to_dict()) == report
        True
        """
        lists = {name: tuple(values.get(name, ())) for name in ("not_erased", "concepts")}
        return cls(**{**values, **lists})

    def __str__(self) -> str:
        lines = [
            f"{self.method}: rank {self.rank} of {self.dim} dimensions, from {self.rows:,} rows",
            f"  mean squared change {self.change:.6g}"
            + (f" ({self.cost_ratio:.4f} of affine)" if self.cost_ratio != 1 else ""),
            *(
                [
                    f"  ridge {self.ridge:.1e}, shrinkage {self.shrinkage:.3g}, smallest eigenvalue "
                    f"{self.smallest_eigenvalue:.2e}, distance from the optimum at most {self.error_bound:.1e}"
                ]
                if self.error_bound
                else []
            ),
            *(f"  {what}" for what in self.concepts),
            *(f"  not erased: {what}" for what in self.not_erased),
        ]
        return "\n".join(lines)
