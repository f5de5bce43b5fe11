"""Switch: move every row to the other class, or to a chosen one, along LEACE's directions alone; no labels needed."""

from __future__ import annotations

import dataclasses

from ..erasers import Eraser
from ..fitting import Shrinkage, check_class, check_moments, mean_squared_change
from ..statistics import Moments
from ._leace import leace


def switch(
    moments: Moments,
    to: int | None = None,
    *,
    shrinkage: Shrinkage = "auto",
    ridge: float | None = None,
) -> Eraser:
    """Return the map that reflects two classes into each other, or moves all classes to the mean of one.

    With the L and R of `leace`, the reflection is `x - 2 L R (x - m)`, m the midpoint of the two class means: each
    becomes the other exactly, and doing it twice undoes it. The move is `x - L R (x - m)`, m the mean of class `to`:
    all class means become that one, so that it erases the concept too.

    Args:
        moments: statistics of (x, labels), with classes.
        to: the class to move to; None reflects two classes.
        shrinkage, ridge: as in `leace`.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: real-valued targets, `to` is unknown or has no rows, or None while more than two classes have rows;
            or as in `leace`.

    Warns:
        UserWarning: a class or a direction was not erased; `report.not_erased` says which and why.

    Guarantees: class means equal, or exchanged.

    Source: Gaintseva et al. 2026 (MidSteer), https://arxiv.org/abs/2605.05220, equations 13 and 14: LEACE-Switch, the
        affine map of least change with `Cov(e(x), z) = -Cov(x, z)`, is `x - 2 L R (x - mean of all)`, which
        `leace(moments).scaled(2.0)` gives for any number of classes. The reflection has its linear part, and another
        offset where the classes are of unlike sizes, so that their means change places all the same. The move is not
        in that paper: it is their erasure, equations 6 and 7, shifted to the mean of one class.

    >>> import torch
    >>> y = torch.arange(90) % 2
    >>> x = torch.randn(90, 4, dtype=torch.float64) + y[:, None]
    >>> moments = Moments(4, 2).update(x, y)
    >>> means = Moments(4, 2).update(switch(moments)(x), y).class_means
    >>> torch.allclose(means, moments.class_means.flip(0))
    True
    """
    check_moments(moments)
    if moments.num_classes is None:
        raise ValueError("the moments hold real-valued targets, expected classes: make them with num_classes")
    base = leace(moments, shrinkage=shrinkage, ridge=ridge)
    present = (moments.class_counts > 0).nonzero().flatten().tolist()
    if to is not None:
        centre = moments.class_means[check_class(moments, "to", to)]
        strength = 1.0
    elif len(present) == 2:
        centre = moments.class_means[present].mean(0)
        strength = 2.0
    else:
        raise ValueError(f"{len(present)} classes have rows, a reflection needs two: say to which class with to=")
    left, right = strength * base.left, base.right
    assert base.report is not None
    change = mean_squared_change(moments, left, right, centre)
    report = dataclasses.replace(base.report, method="switch", change=change)
    return Eraser(left, right, centre, method="switch", report=report)
