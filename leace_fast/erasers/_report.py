"""What a method did and what it could not do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .._schema import NOTHING, NUMBER, TEXT, check_fields, integer, list_of, row_of, short

REQUIRED = ("method", "dim", "rank", "rows", "change")
FIELDS = {
    **{"method": TEXT, "dim": integer(1), "rank": integer(0), "rows": integer(0), "change": NUMBER},
    **{"ridge": NUMBER, "shrinkage": NUMBER, "smallest_eigenvalue": NUMBER, "error_bound": NUMBER},
    **{"cost_ratio": NUMBER, "not_erased": list_of(TEXT), "concepts": list_of(TEXT), "expected_leak": NUMBER},
    **{"groups": integer(0), "effective_groups": NUMBER, "expected_group_leak": NUMBER | NOTHING},
    **{"effective_rank": NUMBER | NOTHING, "contrasts": integer(0)},
    "front": list_of(row_of(integer(0), NUMBER, NUMBER)),
}


@dataclass(frozen=True)
class Report:
    """How an eraser was fitted.

    Attributes:
        method: name of the method.
        dim: width of x.
        rank: rank of the erasure.
        rows: rows that it was fitted on.
        change: mean squared change of x on the rows of the metric, which are those fitted if no other was given; by
            `leace`, were their covariance the shrunk one.
        ridge: added to the diagonal of the correlation matrix.
        shrinkage: weight of the identity in the correlation matrix, 0 for none.
        smallest_eigenvalue: of the correlation matrix that was factored, estimated; 1 if the method needs none.
        error_bound: rounding error of the second moment over that eigenvalue: how far from least change the
            eraser may be, relative. It does not touch what is erased.
        cost_ratio: that change over the change of the affine eraser; 1 for the affine eraser itself.
        not_erased: each class or direction that was not erased, and why.
        concepts: what was erased of each of several concepts.
        expected_leak: nats that a linear classifier is expected to gain over the constant on fresh rows, were all rows
            independent: what the noise of so many rows leaves.
        groups: groups that the rows came from, 0 if it was not said.
        effective_groups: one over the sum of their squared shares.
        expected_group_leak: nats to gain on a group that was not fitted but is of their population, the noise of rows
            included; None where the method or the rows do not tell.
        effective_rank: how many dimensions the rows of the metric fill; None where none was used.
        contrasts: directions beyond those of the class means, in which classes differ from group to group.
        front: for 0, 1, ... contrasts: their number, the nats to gain on a fresh group, and the change.

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
    expected_leak: float = 0.0
    groups: int = 0
    effective_groups: float = 0.0
    expected_group_leak: float | None = None
    effective_rank: float | None = None
    contrasts: int = 0
    front: tuple[tuple[int, float, float], ...] = ()

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
            ValueError: a value is of another kind.

        Source: `dataclasses.asdict`.

        >>> report = Report("leace", dim=8, rank=1, rows=1000, change=0.25, not_erased=("class 2: it has no rows",))
        >>> Report.from_dict(report.to_dict()) == report
        True
        """
        if unknown := {*values} - {*FIELDS}:
            raise TypeError(f"report has the unknown field {short(min(unknown))}")
        if missing := [name for name in REQUIRED if name not in values]:
            raise TypeError(f"report lacks {', '.join(missing)}")
        check_fields(values, FIELDS, optional=[*FIELDS])
        lists = {name: tuple(values.get(name, ())) for name in ("not_erased", "concepts")}
        lists["front"] = tuple(tuple(point) for point in values.get("front", ()))
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
            *self._of_fresh_rows(),
            *(f"  {what}" for what in self.concepts),
            *(f"  not erased: {what}" for what in self.not_erased),
        ]
        return "\n".join(lines)

    def _of_fresh_rows(self) -> list[str]:
        lines = [f"  expected on fresh rows: {self.expected_leak:.2g} nats to gain"] if self.expected_leak else []
        if self.groups:
            of_groups = f"  {self.groups:,} groups, as good as {self.effective_groups:.1f}"
            told = self.expected_group_leak is not None
            lines.append(of_groups + (f": {self.expected_group_leak:.2g} nats to gain on a fresh one" if told else ""))
        if self.front:
            lines.append(f"  {self.contrasts} contrasts; nats to gain on a fresh group, and change, by number:")
            lines += [f"    {number}: {leak:.3g}, {change:.3g}" for number, leak, change in self.front]
        return lines
