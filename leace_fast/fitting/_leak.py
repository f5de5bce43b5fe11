"""What to expect of rows that were not fitted: how far their class means may lie from those that were made equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._warnings import warn
from ..statistics import Cells, Moments, summed
from ._concept import DEPENDENT
from ._whitening import ROWS_PER_DIMENSION, Whitening, whitening_of

# Nats: two even classes of normal rows that .02 are left of can be told with 58 %, of .01 with 56, of 0 with 50.
MUCH, LITTLE = 0.02, 0.01
FEW_GROUPS = 10  # effective groups, below which what a fresh one brings is hardly known
# Effective rank over width, below which a metric tells little of rows of another kind: ordinary text fills .06 to .5 of
# the norms of a small language model, template sentences .01.
NARROW = 0.03


@dataclass(frozen=True)
class Means:
    """Class means and how much each weighs, out of cells of group and class.

    Attributes:
        present: (k,) int64, the classes that have rows.
        shares: (k,) of their weights in all.
        means: (k, d) less a shift common to all.
        total: (d,) the mean of all rows less that shift.
    """

    present: Tensor
    shares: Tensor
    means: Tensor
    total: Tensor

    @classmethod
    def of(cls, cells: Cells) -> Means:
        """Return the means of the classes that some cells hold."""
        present, place = cells.classes.unique(return_inverse=True)
        weights = summed(cells.weights, place, len(present))
        sums = summed(cells.weights[:, None] * cells.means, place, len(present))
        return cls(present, weights / weights.sum(), sums / weights[:, None], sums.sum(0) / weights.sum())

    @property
    def differences(self) -> Tensor:
        """Class means less the mean of all, each times the root of its share (d, k)."""
        return ((self.means - self.total) * self.shares.sqrt()[:, None]).mT


def count_leak(moments: Moments, rank: int) -> float:
    """Return the nats that a linear classifier gains on average on fresh rows, were all rows independent.

    The class means that were made equal are those of n rows: the true ones lie `sum_j p_j |W d_j|^2 = (k - 1) d / n`
    from them, and classes so far apart give half of that in nats. Real-valued targets count as so many classes more.

    Args:
        moments: with rows.
        rank: of the erasure, which takes its own directions from all rows.

    Source: the second-order expansion of mutual information; checked by simulation in tests/fitting/test_leak.py.
    """
    if moments.num_classes is not None:
        free = int((moments.class_weights > 0).sum()) - 1
    else:
        values = torch.linalg.eigvalsh(moments.target_covariance)
        free = int((values > DEPENDENT * values[-1]).sum())
    return free * (moments.dim - rank) / (2 * max(moments.effective_count, 1.0))


def group_leak(cells: Cells, white: Whitening, basis: Tensor) -> float:
    """Return the nats that a linear classifier gains on average on groups that were not fitted.

    It is the jackknife: how far the class means move, outside of what is erased, as each group is left out. The noise
    of counts is in it. It knows nothing of a population that differs from the one that was fitted.

    Args:
        cells: counts and means by group and class.
        white: of the rows themselves: another metric would give other units than nats.
        basis: (d, r) orthonormal, whitened: what is erased.

    Returns:
        Nats; infinite if there is one group only, or a class that only one group has.

    Source: Efron and Stein 1981, https://doi.org/10.1214/aos/1176345462, for the jackknife's variance of means.
    """
    means = Means.of(cells)
    group, by_group = cells.places, cells.group_weights
    kind = torch.searchsorted(means.present, cells.classes)
    by_class = summed(cells.weights, kind, len(means.present))
    share, of_group = cells.weights / by_class[kind], by_group / by_group.sum()
    if len(by_group) < 2 or bool((share >= 1).any()):
        return float("inf")
    moved = (share / (1 - share))[:, None] * (cells.means - means.means[kind])
    as_a_whole = (of_group / (1 - of_group))[:, None] * (cells.group_means - means.total)
    moved, as_a_whole = (outside(white.whiten(part.mT), basis).mT for part in (moved, as_a_whole))
    # sum_k p_k |moved_gk - whole_g|^2, where the cells without rows did not move
    prior = means.shares[kind]
    squares = (prior * (moved.square().sum(1) - 2 * (moved * as_a_whole[group]).sum(1))).sum()
    return 0.5 * float(squares + as_a_whole.square().sum())


def outside(columns: Tensor, basis: Tensor) -> Tensor:
    """Return columns (d, m) without what an orthonormal basis (d, r) spans."""
    return columns - basis @ (basis.mT @ columns)


def expected(
    every: Sequence[Moments],
    rank: int,
    white: Whitening | None = None,
    basis: Tensor | None = None,
    left: Tensor | None = None,
) -> dict[str, Any]:
    """Return what a report says of fresh rows and groups: the worst of several concepts.

    Args:
        every: the moments of each concept.
        rank: of the erasure.
        white, basis: as in `group_leak`; without them, groups are only counted.
        left: (d, r) the basis in the units of x, where `white` is a metric of other rows; None where it is of these.
    """
    found: dict[str, Any] = {"expected_leak": max(count_leak(one, rank) for one in every)}
    grouped = [(one, cells) for one in every if (cells := one.cells) is not None and len(cells.groups)]
    if grouped:
        fewest = min((cells for _, cells in grouped), key=lambda cells: cells.effective_groups)
        found |= {"groups": len(fewest.ids), "effective_groups": fewest.effective_groups}
        if white is not None and basis is not None:
            seen_by = ((white, basis) if left is None else _as_seen_by(one, left) for one, _ in grouped)
            found["expected_group_leak"] = max(
                group_leak(cells, *own) for (_, cells), own in zip(grouped, seen_by, strict=True)
            )
    return found


def _as_seen_by(moments: Moments, left: Tensor) -> tuple[Whitening, Tensor]:
    """Return the whitening of some rows, and in it a basis of what is erased.

    A linear reader w of erased rows has w'L = 0: it sees what lies outside of the whitened L, whatever metric made L.
    """
    white = whitening_of(moments)
    return white, torch.linalg.qr(white.whiten(left))[0]


def warn_of_leaks(report: Any) -> None:
    """Warn of too few rows for the width, or too few groups, with the numbers that would do."""
    if report.expected_leak > MUCH:
        enough = report.rows * report.expected_leak / LITTLE
        warn(
            f"{report.rows:,} rows are few for {report.dim} columns: on fresh rows a linear classifier is expected to "
            f"gain {report.expected_leak:.2g} nats; about {enough:,.0f} rows would bring it to {LITTLE}",
            about="few rows",
        )
    if report.groups and report.effective_groups < FEW_GROUPS:
        warn(
            f"the rows come from {report.groups} groups, by their shares as good as {report.effective_groups:.1f}: on "
            f"a fresh group much may be left; fit on {FEW_GROUPS} or more of like size",
            about="few groups",
        )


def warn_of_narrow(white: Whitening, rows: float | None) -> None:
    """Warn of a metric whose rows fill few of the columns or, where a metric was given, are fewer than would do."""
    dim = len(white.scale)
    if rows is not None and rows < ROWS_PER_DIMENSION * dim:
        warn(
            f"the metric is of {rows:,.0f} rows, few for {dim} columns: what least change is on other rows is hardly "
            f"known; {ROWS_PER_DIMENSION * dim:,} or more would do",
            about="few rows in the metric",
        )
    if white.effective_rank < NARROW * dim:
        warn(
            f"the rows that least change is measured on fill {white.effective_rank:.1f} of {dim} dimensions (effective "
            "rank): other rows may change much more; measure on ordinary ones, by metric= or neutral=",
            about="narrow metric",
        )
