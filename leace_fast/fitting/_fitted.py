"""What all methods do last: check the options they share, measure the change, fill in the report, warn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._warnings import warn
from ..erasers import Eraser, Report
from ..statistics import Moments
from ._leak import expected, warn_of_leaks
from ._whitening import Whitening


def check_rank(rank: int | None) -> None:
    """Raise ValueError if `rank` is neither None nor a positive integer."""
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank is {rank!r}, expected a positive integer or None for all")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError if an option is no integer, or too small a one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")


def check_class(moments: Moments, name: str, value: object) -> int:
    """Return a class that has rows; raise ValueError for real-valued targets, or a class unknown or without rows."""
    if moments.num_classes is None:
        raise ValueError("the moments hold real-valued targets, expected classes: make them with num_classes")
    counts = moments.class_counts
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(counts):
        raise ValueError(f"{name} is {value!r}, expected a class from 0 to {len(counts) - 1}")
    if not counts[value]:
        raise ValueError(f"{name} is class {value}, which has no rows: expected one of those that have")
    return value


def warn_of(not_erased: Sequence[str]) -> None:
    """Warn the user of what was not erased, if anything."""
    if not_erased:
        warn("not erased: " + "; ".join(not_erased))


def mean_squared_change(moments: Moments, left: Tensor, right: Tensor, mean: Tensor | None) -> float:
    """Return the mean over the rows of `|L R (x - mean)|^2`, that is `tr L R S R' L'` and what the mean adds."""
    seen = moments.covariance_read(right)
    moved = right @ (moments.mean if mean is None else moments.mean - mean)
    return float(((left.mT @ left) * (seen + moved.outer(moved))).sum())


def fitted(
    method: str,
    moments: Moments,
    left: Tensor,
    right: Tensor,
    mean: Tensor | None,
    *,
    not_erased: list[str] | None = None,
    concepts: tuple[str, ...] = (),
    white: Whitening | None = None,
) -> Eraser:
    """Return the eraser of these factors with a report on the rows of some moments, and on how they were whitened."""
    whitened = (
        {}
        if white is None
        else {
            "ridge": white.ridge,
            "shrinkage": white.shrinkage,
            "smallest_eigenvalue": white.smallest_eigenvalue,
            "error_bound": moments.relative_error / white.smallest_eigenvalue,
            "effective_rank": white.effective_rank,
        }
    )
    report = Report(
        method=method,
        dim=moments.dim,
        rank=left.shape[1],
        rows=moments.count,
        change=mean_squared_change(moments, left, right, mean),
        not_erased=tuple(not_erased or ()),
        concepts=concepts,
        **whitened,
        **expected([moments], left.shape[1]),
    )
    warn_of_leaks(report)
    return Eraser(left, right, mean, method=method, report=report)
