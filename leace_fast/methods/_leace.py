"""LEACE: of the affine maps that make the class means of the fitted rows coincide, the one of least change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..erasers import MAX_COST_RATIO, Eraser, Report
from ..fitting import (
    MOST_CONTRASTS,
    Concept,
    Contrasts,
    Shrinkage,
    Whitening,
    canonical_columns,
    check_contrasts,
    check_moments,
    check_rank,
    chosen,
    concept_of,
    concepts_of,
    contrasts_of,
    crossed_leak,
    described,
    expected,
    fullest,
    on_one_thread,
    scaling_of,
    span_of,
    union_of,
    warn_of,
    warn_of_leaks,
    warn_of_narrow,
    warn_of_none,
    whitening_of,
)
from ..statistics import Cells, Moments

MOST_LEFT = 1e-6  # of the differences of class means, beyond which they are not erased
SMALL_REST = 1e-9  # its square is below rounding: one step of Newton is the inverse


@on_one_thread
def leace(
    moments: Moments | Sequence[Moments],
    *,
    rank: int | None = None,
    metric: Moments | None = None,
    contrasts: Contrasts = 0,
    affine: bool = True,
    shrinkage: Shrinkage = "auto",
    ridge: float | None = None,
    max_cost_ratio: float = MAX_COST_RATIO,
) -> Eraser:
    """Return the eraser of least change in closed form, `x - L R (x - m)` with `L = S^1/2 U`, `R = U' S^-1/2`.

    The root of the covariance S is `D K`: D the standard deviations, K K' the correlation matrix. U are the left
    singular vectors of `K^-1 D^-1 C`, C the differences of class means: `L = D K U`, `R = U' K^-1 D^-1`. Columns of
    C count alike, however rare their class.

    Args:
        moments: statistics of (x, labels); or several, of the same x with the labels of several concepts: all of
            them are erased. Mean and covariance of x are then those of the moments with the most rows.
        rank: erase only so many directions, those of the largest canonical correlation.
        metric: statistics of the rows that the eraser will act on, labelled or not: their mean and covariance say what
            least change is. None for those of `moments`. The class means of `moments` are made equal all the same.
        contrasts: so many directions more, in which the classes differ from group to group: less is left on groups
            that were not fitted, more is changed. "auto" for as few as take away half of what 20 would, cross-fitted
            over groups; `report.front` shows the choice. They need rows with groups.
        affine: True keeps the mean; False gives the best map without an offset, which fits weights without a bias.
        shrinkage: weight of the identity in the correlation matrix, 0 to 1; True for that of Bodnar et al. 2014
            (https://arxiv.org/abs/1308.2608), False for none, "auto" for True below 4 rows a dimension. It moves the
            eraser off the least change, never off the erasure.
        ridge: added to the diagonal of the correlation matrix; by default the rounding error of the statistics. Rows in
            float64 that a float32 norm made lie in a hyperplane but for its rounding, which an eraser of few columns
            may read: 2e-6, as for float32 rows, keeps it from that.
        max_cost_ratio: with `affine=False`, refuse a map that changes x more than so many times the affine one.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: no rows, one class only, non-finite rows, an option out of range, a metric of another width or on
            another device, or contrasts without groups or beside a rank.

    Warns:
        UserWarning: a class or a direction was not erased, and `report.not_erased` says which and why; rows or groups
            are too few for fresh ones to be erased too, and how many would do; the metric's rows fill few dimensions.

    Guarantees: class means equal; of all affine maps that do this, least change; mean kept.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, theorem 4.3 (affine), equation 3 (linear).

    >>> import torch
    >>> y = torch.arange(2000) % 3
    >>> x = torch.randn(2000, 16) + torch.eye(16)[y] * 5
    >>> eraser = leace(Moments(16, 3).update(x, y))
    >>> eraser.rank
    2
    >>> means = Moments(16, 3).update(eraser(x.double()), y).class_mean_differences
    >>> bool(means.abs().max() < 1e-12)
    True
    >>> two = leace([Moments(16, 3).update(x, y), Moments(16, 2).update(x, (x[:, 9] > 0).long())])
    >>> two.rank, two.report.concepts
    (3, ('concept 0: 2 directions', 'concept 1: 1 direction'))
    """
    check_rank(rank)
    every = concepts_of(moments)
    cells = check_contrasts(contrasts, every, rank)
    concepts = [concept_of(one) for one in every]
    main = fullest(every) if metric is None else _metric(metric, every[0])
    white = whitening_of(main, shrinkage, ridge, () if metric is None else every)
    directions, incomplete = _directions(every, concepts, white, rank, foreign=metric is not None)
    if cells:
        directions = _with_contrasts(directions, cells, white, contrasts)
    basis, left = directions.basis, directions.left

    mean = main.mean
    right = refined(white.readers(basis), left)
    # A constant column is left alone without an offset too: it could serve as one, but only while it stays constant.
    whitened_mean = white.whiten(torch.where(white.constant, 0.0, mean)[:, None])
    # The mean squared change of centred rows is tr L (R S R') L', and R S R' = U'U = I for the S that was whitened.
    change, ratio = float(left.square().sum()), 1.0
    if not affine:
        right = refined(_without_mean(basis, whitened_mean, white), left)
        linear = _change(left, right, white) + float((left @ (right @ mean)).square().sum())
        change, ratio = linear, linear / change if change else 1.0
        _check_cost(ratio, max_cost_ratio)
    if metric is not None and rank is None and (told := _left_by(left, right, concepts, every)):
        directions, incomplete = replace(directions, not_erased=(*directions.not_erased, told)), True
    if incomplete:
        warn_of(directions.not_erased)
    report = Report(
        method="leace",
        dim=main.dim,
        rank=basis.shape[1],
        rows=fullest(every).count,
        change=change,
        ridge=white.ridge,
        shrinkage=white.shrinkage,
        smallest_eigenvalue=white.smallest_eigenvalue,
        error_bound=main.relative_error / white.smallest_eigenvalue,
        effective_rank=white.effective_rank,
        cost_ratio=ratio,
        not_erased=directions.not_erased,
        concepts=directions.concepts,
        contrasts=directions.contrasts,
        front=directions.front,
        **directions.fresh,
    )
    warn_of_leaks(report)
    warn_of_narrow(white, None if metric is None else main.effective_count)
    solve = white.readers(whitened_mean)[0] if affine else None
    return Eraser(left, right, mean if affine else None, method="leace", report=report, mean_solve=solve)


def _metric(metric: Moments, moments: Moments) -> Moments:
    """Return the moments that least change is measured by; raise if they are not of rows like those of the concept."""
    check_moments(metric)
    metric.check_finite()
    for name in ("dim", "device"):
        if getattr(metric, name) != getattr(moments, name):
            raise ValueError(
                f"the metric has {name} {getattr(metric, name)}, expected {getattr(moments, name)} as the concept's "
                "moments have"
            )
    if not metric.count:
        raise ValueError("the metric holds no rows: call update(x) first")
    return metric


def _left_by(left: Tensor, right: Tensor, concepts: Sequence[Concept], every: Sequence[Moments]) -> str:
    """Tell of class means that differ all the same, as the rows of the metric hardly vary where they do; "" if none."""
    worst = 0.0
    for concept, moments in zip(concepts, every, strict=True):
        scaling = scaling_of(moments)
        rest = scaling.whiten(concept.columns - left @ (right @ concept.columns))[~scaling.constant]
        whole = scaling.whiten(concept.columns)[~scaling.constant].norm()
        worst = max(worst, float(rest.norm() / whole.clamp_min(1e-300)))
    if worst < MOST_LEFT:
        return ""
    return (
        f"class means differ by {worst:.1g} of what they did, in directions in which the metric's rows hardly vary: "
        "give a metric of more rows or other ones, or merge the labelled rows into it"
    )


@dataclass(frozen=True)
class Directions:
    """What is erased, and what the report says of it.

    Attributes:
        basis: (d, r) orthonormal, whitened.
        left: (d, r) the same in the units of x.
        fresh: what is expected of fresh rows.
        contrasts: how many of the directions are contrasts.
        not_erased, concepts, front: as in `Report`.
    """

    basis: Tensor
    left: Tensor
    fresh: dict[str, Any]
    not_erased: tuple[str, ...]
    concepts: tuple[str, ...]
    contrasts: int = 0
    front: tuple[tuple[int, float, float], ...] = ()


def _directions(
    every: Sequence[Moments], concepts: Sequence[Concept], white: Whitening, rank: int | None, foreign: bool
) -> tuple[Directions, bool]:
    """Return those of the class means, all or the strongest, and whether a class or a direction is not among them.

    What is expected of fresh groups is in nats of the concept's rows, also where the metric is `foreign` to them.
    """
    concept = union_of(concepts)
    span = span_of(concept, white)
    basis, left = span.basis, span.left
    incomplete = not_erased = (*concept.absent, *span.unresolved)
    if rank is not None and rank < span.rank:
        not_erased = (*incomplete, f"{span.rank - rank} of {span.rank} directions: rank={rank} was asked for")
        canonical = torch.cat([white.whiten(canonical_columns(one)) for one in every], 1)
        turn = torch.linalg.svd(basis.mT @ canonical, full_matrices=False)[0][:, :rank]
        basis, left = basis @ turn, left @ turn
    lines = described(concepts, white) if rank is None else ()
    fresh = expected(every, basis.shape[1], white, basis, left if foreign else None)
    return Directions(basis, left, fresh, not_erased, lines), bool(incomplete)


def _with_contrasts(found: Directions, cells: Sequence[Cells], white: Whitening, wanted: Contrasts) -> Directions:
    """Return directions with the contrasts that are wanted, and the front of leak against change.

    The level of the leak is that of the jackknife without contrasts, which is right; how it falls is cross-fitted. The
    groups that gave the contrasts know nothing of what these leave on others.
    """
    most = MOST_CONTRASTS if wanted == "auto" else wanted
    every = contrasts_of(cells, white, found.basis, most)
    if not every.shape[1]:
        warn_of_none()
        return found
    rest = crossed_leak(cells, white, most)[: every.shape[1] + 1]
    number = min(chosen(rest, cells, found.basis.shape[1]), every.shape[1]) if wanted == "auto" else every.shape[1]
    columns = white.unwhiten(every)
    changes = float(found.left.square().sum()) + torch.cat([columns.new_zeros(1), columns.square().sum(0).cumsum(0)])
    level = found.fresh["expected_group_leak"] / rest[0] if rest[0] else 0.0
    front = tuple(
        (i, max(level * leak, 0.0), change)
        for i, (leak, change) in enumerate(zip(rest, changes.tolist(), strict=False))
    )
    rank, dim = found.basis.shape[1], len(found.basis)
    told = {
        "expected_group_leak": front[min(number, len(front) - 1)][1],
        "expected_leak": found.fresh["expected_leak"] * (dim - rank - number) / max(dim - rank, 1),
    }
    return replace(
        found,
        basis=torch.cat([found.basis, every[:, :number]], 1),
        left=torch.cat([found.left, columns[:, :number]], 1),
        fresh=found.fresh | told,
        contrasts=number,
        front=front,
    )


def refined(right: Tensor, left: Tensor) -> Tensor:
    """Return `(R L)^-1 R`: what rounding left of `R L` from the identity is taken out."""
    product = right @ left
    rest = -product
    rest.diagonal().add_(1)
    size = float(rest.norm())
    if size == 0:  # also of no directions, which have no largest entry
        return right
    if not size < SMALL_REST:
        return torch.linalg.solve(product, right)
    # The step lies so far below R that the digits of float32 are more than count; units keep R in its range.
    units = torch.linalg.vector_norm(right, torch.inf, dim=0)
    units = torch.where(units > 0, units, 1.0)
    step = rest.float() @ (right / units).float()
    return torch.addcmul(right, step.double(), units)


def _check_cost(ratio: float, most: float) -> None:
    if ratio > most:
        raise ValueError(
            f"without an offset the eraser changes x {ratio:.3g} times as much as the affine one, at most {most} is "
            "allowed: use affine=True, or raise max_cost_ratio"
        )


def _without_mean(basis: Tensor, mean: Tensor, white: Whitening) -> Tensor:
    """Return the readers for the uncentred second moment, that of x plus the mean's outer product.

    Whitened it is I + w w', whose inverse is I - w w' / (1 + w'w): no second factorisation.
    """
    taken = mean * ((mean.mT @ basis) / (1 + mean.square().sum()))
    return white.readers(basis - taken)


def _change(left: Tensor, right: Tensor, white: Whitening) -> float:
    """Return the mean squared change of centred rows, `tr L (R S R') L'`, for the S that was whitened."""
    spread = (right * white.scale) @ white.factor
    return float(((left.mT @ left) * (spread @ spread.mT)).sum())
