"""The directions that an erasure must remove, taken from `Moments` without losing a digit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..statistics import Moments

EPSILON = 2.0**-52
CONSTANT = 4 * EPSILON  # share of its mean below which the deviation of a column is rounding
# Share of that below which it is none: sums of equal numbers are rounded too, but by far less.
EQUAL = 2.0**-16
MOST_NAMED = 5
# Directions of targets at unit variance with less variance than this are sums of the other targets, rounded.
DEPENDENT = 2.0**-40


@dataclass(frozen=True)
class Concept:
    """What must vanish, as columns: an erasure `L R` is complete when it fixes each of them.

    Attributes:
        columns: (d, m) float64: class means less that of the largest class, or the cross-covariance with each target.
        size: (d, m) magnitude of the numbers that each entry is the difference of; its rounding error is 2^-52 of it.
        names: m names, for the report.
        absent: what has no rows.
    """

    columns: Tensor
    size: Tensor
    names: tuple[str, ...]
    absent: tuple[str, ...]


def check_moments(moments: object) -> None:
    """Raise TypeError for what is no `Moments`, such as the rows that other methods take."""
    if not isinstance(moments, Moments):
        raise TypeError(f"got {_kind_of(moments)}, expected Moments: Moments(dim, num_classes).update(x, y)")


def _kind_of(given: object) -> str:
    if isinstance(given, (list, tuple)):
        return f"a {type(given).__name__} of {', '.join(sorted({type(item).__name__ for item in given})) or 'nothing'}"
    return "None" if given is None else f"a {type(given).__name__}"


def concepts_of(moments: Moments | Sequence[Moments]) -> list[Moments]:
    """Return the moments of one or several concepts of the same x as a list.

    Raises:
        TypeError: something else was given.
        ValueError: none were given, or their widths or devices differ.
    """
    every = [moments] if isinstance(moments, Moments) else moments
    if not isinstance(every, Sequence) or not all(isinstance(one, Moments) for one in every):
        raise TypeError(f"got {_kind_of(moments)}, expected Moments, or a sequence of Moments: one for each concept")
    if not every:
        raise ValueError("got no moments, expected those of at least one concept")
    for name in ("dim", "device"):
        values = {str(getattr(one, name)) for one in every}
        if len(values) > 1:
            raise ValueError(f"the moments differ in {name}: {', '.join(sorted(values))}, expected those of the same x")
    return list(every)


def fullest(every: Sequence[Moments]) -> Moments:
    """Return the moments with the most weight, whose mean and covariance stand for those of x."""
    return max(every, key=lambda one: one.total_weight)


def absent_of(moments: Moments) -> tuple[str, ...]:
    """Return a line on each class without rows, or constant target, of a concept that can be told apart at all.

    Raises:
        TypeError: something else was given.
        ValueError: non-finite rows were met and are not to be skipped, there are no rows, or rows of one class only.
    """
    check_moments(moments)
    if moments.num_classes is None and moments.target_dim is None:
        raise ValueError("the moments hold no labels, expected a concept: make them with num_classes or target_dim")
    moments.check_finite()
    counts = moments.class_counts.tolist()
    if not any(counts):
        raise ValueError("the moments hold no rows: call update(x, y) first")
    hidden = hidden_columns(moments.variance.sqrt(), moments.mean, _signal(moments))
    if moments.num_classes is None:
        constant = (moments.target_covariance.diagonal() <= 0).nonzero().flatten()
        return (*(f"target {j}: it is constant" for j in constant.tolist()), *hidden)
    present = [j for j, count in enumerate(counts) if count]
    if len(present) < 2:
        raise ValueError(
            f"only class {present[0]} has rows ({counts[present[0]]} of them), expected at least two classes: "
            "there is nothing to tell apart, check the labels"
        )
    return (*(f"class {j}: it has no rows" for j, count in enumerate(counts) if not count), *hidden)


def constant_columns(deviation: Tensor, mean: Tensor) -> Tensor:
    """Return which columns are taken for constant (d,) bool: they vary by less than their numbers are rounded."""
    return deviation <= CONSTANT * mean.abs()


def hidden_columns(deviation: Tensor, mean: Tensor, signal: Tensor | None = None) -> tuple[str, ...]:
    """Return a line on the columns that are taken for constant and are not quite: nothing in them is erased.

    Args:
        deviation, mean: (d,) of the columns.
        signal: (d,) how far class means lie apart, which counts where squares are too small for float64.
    """
    rounding = CONSTANT * mean.abs()
    varies = deviation > EQUAL * rounding
    if signal is not None:
        varies |= signal > EQUAL**2 * rounding
    found = (varies & constant_columns(deviation, mean)).nonzero().flatten().tolist()
    if not found:
        return ()
    names = ", ".join(map(str, found[:MOST_NAMED])) + (", ..." if len(found) > MOST_NAMED else "")
    kind = f"column {names} of x varies" if len(found) == 1 else f"columns {names} of x ({len(found)}) vary"
    return (f"{kind} by less than rounding: take off what is common to all rows, or leave the column out",)


def _signal(moments: Moments) -> Tensor:
    """Return how far the class means of each column lie apart (d,), or what they are to targets of unit variance."""
    if moments.num_classes is not None:
        return moments.class_mean_differences[moments.class_counts > 0].abs().amax(0)
    spread = moments.target_covariance.diagonal().clamp_min(0).sqrt()
    return (moments.cross_covariance / torch.where(spread > 0, spread, torch.inf)).abs().amax(1)


def concept_of(moments: Moments) -> Concept:
    """Return the concept of some moments.

    Raises:
        ValueError: as in `absent_of`.
    """
    absent = absent_of(moments)
    if moments.num_classes is None:
        return _targets(moments, absent)
    counts = moments.class_counts.tolist()
    # Less the largest class instead of the overall mean: no structural null direction is left among the columns.
    reference = counts.index(max(counts))
    others = [j for j, count in enumerate(counts) if count and j != reference]
    means, full = moments.means_about_shift, moments.class_means
    return Concept(
        columns=(means[others] - means[reference]).mT,
        # The means themselves, not those about the shift: rows at an offset were rounded there before they came.
        size=torch.hypot(full[others], full[reference]).mT,
        names=tuple(f"class {j} against class {reference}" for j in others),
        absent=absent,
    )


def union_of(concepts: Sequence[Concept]) -> Concept:
    """Return several concepts as one; their names tell which is which."""
    if len(concepts) == 1:
        return concepts[0]

    def named(part: str) -> tuple[str, ...]:
        return tuple(f"concept {i}: {name}" for i, one in enumerate(concepts) for name in getattr(one, part))

    return Concept(
        columns=torch.cat([one.columns for one in concepts], 1),
        size=torch.cat([one.size for one in concepts], 1),
        names=named("names"),
        absent=named("absent"),
    )


def _targets(moments: Moments, absent: tuple[str, ...]) -> Concept:
    cross = moments.cross_covariance
    spread = moments.target_covariance.diagonal().clamp_min(0).sqrt()
    size = torch.outer(moments.variance.sqrt(), spread)
    return Concept(cross, size, tuple(f"target {j}" for j in range(cross.shape[1])), absent)


def canonical_columns(moments: Moments) -> Tensor:
    """Return columns (d, m) whose singular vectors, whitened, are the canonical directions of the concept in order."""
    if moments.num_classes:
        shares = moments.class_weights / moments.total_weight
        present = shares > 0
        return (moments.class_mean_differences[present] * shares[present].sqrt()[:, None]).mT
    targets = moments.target_covariance
    spread = targets.diagonal().clamp_min(0).sqrt()
    scale = torch.where(spread > 0, spread, 1.0)
    values, vectors = torch.linalg.eigh(targets / torch.outer(scale, scale))
    kept = values > DEPENDENT * values[-1]
    return (moments.cross_covariance / scale) @ (vectors[:, kept] * values[kept].rsqrt())
