"""SPLINCE: erase a concept and keep the covariance of x with a task, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..erasers import Eraser
from ..fitting import (
    Shrinkage,
    concept_of,
    concepts_of,
    described,
    fitted,
    fullest,
    on_one_thread,
    span_of,
    union_of,
    warn_of,
    whitening_of,
)
from ..statistics import Moments
from ._leace import refined

LEAST_ANGLE = 1e-6  # sine of the angle between concept and task below which they cannot be told apart


@on_one_thread
def splince(
    moments: Moments | Sequence[Moments],
    task: Moments | Sequence[Moments],
    *,
    shrinkage: Shrinkage = "auto",
    ridge: float | None = None,
    max_change_ratio: float = 100.0,
) -> Eraser:
    """Return the eraser of least change that removes a concept and fixes the covariance of x with a task.

    With U and V orthonormal bases of the concept and the task, whitened by `K^-1 D^-1` as in `leace`, and
    `Q = I - V V'`, it is `L = D K U`, `R = (U' Q U)^-1 U' Q K^-1 D^-1`: among all maps with `R C = C` for the concept
    and `R T = 0` for the task, the nearest to the identity.

    Args:
        moments: statistics of (x, labels) of the concept to erase, or of several.
        task: those of the same x with the labels or targets to keep, or of several.
        shrinkage, ridge: as in `leace`.
        max_change_ratio: refuse a map that changes x more than so many times as `leace` does.

    Raises:
        TypeError: `moments` or `task` are no `Moments`.
        ValueError: concept and task share a direction, or are so close that the change would pass `max_change_ratio`;
            or as in `leace`.

    Warns:
        UserWarning: a class or a direction was not erased; `report.not_erased` says which and why.

    Guarantees: class means equal; covariance with the task kept; least change of all that do both; mean kept.

    Source: Holstege, Ravfogel and Wouters 2025, https://arxiv.org/abs/2506.10703, theorem 1.

    >>> import torch
    >>> x = torch.randn(1000, 6, dtype=torch.float64)
    >>> task = Moments(6, target_dim=1).update(x, x[:, :1])
    >>> concept = Moments(6, 2).update(x, (x[:, 0] + x[:, 1] > 0).long())
    >>> eraser = splince(concept, task)
    >>> after = Moments(6, target_dim=1).update(eraser(x), x[:, :1])
    >>> torch.allclose(after.cross_covariance, task.cross_covariance)
    True
    """
    every, kept = concepts_of(moments), concepts_of(task)
    concepts_of([*every, *kept])
    main = fullest(every)
    concepts = [concept_of(one) for one in every]
    concept = union_of(concepts)
    white = whitening_of(main, shrinkage, ridge)
    erased, fixed = span_of(concept, white), span_of(union_of([concept_of(one) for one in kept]), white)

    away = erased.basis - fixed.basis @ (fixed.basis.mT @ erased.basis)
    away -= fixed.basis @ (fixed.basis.mT @ away)  # twice: what is left is orthogonal to the task to rounding
    angle = float(torch.linalg.svdvals(away)[-1]) if erased.rank else 1.0
    if angle < LEAST_ANGLE or erased.rank + fixed.rank > main.dim:
        raise ValueError(
            f"the concept ({erased.rank} directions) and the task ({fixed.rank}) share a direction of the {main.dim} "
            f"(sine of the least angle {angle:.1e}): what is to be erased cannot be kept too"
        )
    right = refined(white.readers(torch.linalg.solve(away.mT @ away, away.mT).mT), erased.left)
    not_erased = [*concept.absent, *erased.unresolved]
    warn_of(not_erased)
    eraser = fitted(
        "splince",
        main,
        erased.left,
        right,
        main.mean,
        not_erased=not_erased,
        concepts=described(concepts, white),
        white=white,
    )
    least = float(erased.left.square().sum())  # the change of leace
    if eraser.report and eraser.report.change > max_change_ratio * least:
        raise ValueError(
            f"keeping the task changes x {eraser.report.change / least:.3g} times as much as erasing alone, at most "
            f"{max_change_ratio} is allowed: concept and task are too close, raise max_change_ratio or use leace"
        )
    return eraser
