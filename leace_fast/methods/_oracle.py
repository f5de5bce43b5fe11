"""Oracle LEACE: with the labels at hand, the least change that equals all class means."""

from __future__ import annotations

import torch

from ..erasers import ConditionalEraser, Report, TargetEraser
from ..fitting import DEPENDENT, absent_of, on_one_thread, warn_of
from ..statistics import Moments


@on_one_thread
def oracle(moments: Moments) -> ConditionalEraser | TargetEraser:
    """Return the eraser of rows whose labels are known, `x - Sxz Szz^-1 (z - mean of z)`.

    With classes that is `x - (m_y - m)`: each class is moved so that its mean becomes that of all. No map that leaves
    nothing for a linear classifier changes x less; but it adds to x what the label tells, for classifiers that are
    not linear.

    Args:
        moments: statistics of (x, labels).

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: no rows, one class only, or non-finite rows.

    Warns:
        UserWarning: a class has no rows, or a target is constant.

    Guarantees: class means equal; of all maps, least change; mean kept.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, appendix F (oracle LEACE).

    >>> import torch
    >>> x, y = torch.randn(90, 4, dtype=torch.float64), torch.arange(90) % 3
    >>> eraser = oracle(Moments(4, 3).update(x, y))
    >>> bool(Moments(4, 3).update(eraser(x, y), y).class_mean_differences.abs().max() < 1e-12)
    True
    """
    absent = absent_of(moments)
    warn_of(absent)

    def report(rank: int, change: float) -> Report:
        return Report("oracle", moments.dim, rank, moments.count, change, not_erased=absent)

    if moments.num_classes is None:
        covariance = moments.target_covariance
        spread = covariance.diagonal().clamp_min(0).sqrt()
        scale = torch.where(spread > 0, spread, 1.0)
        values, vectors = torch.linalg.eigh(covariance / torch.outer(scale, scale))
        kept = values > DEPENDENT * values[-1]
        half = (moments.cross_covariance / scale) @ (vectors[:, kept] * values[kept].rsqrt())
        coefficients = half @ (vectors[:, kept] * values[kept].rsqrt()).mT / scale
        change = float(half.square().sum())
        return TargetEraser(coefficients, moments.target_mean, method="oracle", report=report(int(kept.sum()), change))
    present = moments.class_counts > 0
    moved = torch.where(present[:, None], moments.class_mean_differences, 0.0)
    change = float((moments.class_weights / moments.total_weight) @ moved.square().sum(1))
    # About the origin: the difference of the two points is all that counts, and here it keeps every digit.
    eraser = report(min(int(present.sum()) - 1, moments.dim), change)
    return ConditionalEraser(moved, torch.zeros_like(moved), method="oracle", report=eraser)
