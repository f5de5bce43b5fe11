"""Quadratic LEACE, its editor and MiMiC: each class carried to one Gaussian by optimal transport; labels needed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..erasers import ConditionalEraser, Report
from ..fitting import absent_of, check_class, warn_of
from ..statistics import Moments
from ._transport import ClassGaussians, class_gaussians, mapping_error, maps_to_barycentre, transport_maps

LARGEST_ERROR = 1e-3  # of a mapped covariance, beyond which a class is said not to be erased


def quadratic(moments: Moments, *, ridge: float | None = None) -> ConditionalEraser:
    """Return the eraser that carries each class to the barycentre of all: no quadratic classifier can tell them.

    `e(x, y) = A_y (x - m_y) + m`, A_y the optimal transport from the covariance of class y to the barycentre, m the
    mean of all rows. Mean and covariance of all classes are the same afterwards, and the overall mean is kept.

    Args:
        moments: statistics of (x, labels), with `per_class=True`.
        ridge: added to each class covariance, a share of the variances; by default rounding's.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: no class covariances, no rows, one class only, non-finite rows, or ridge is out of range.

    Warns:
        UserWarning: a class has no rows, or so few, or of so few digits, that its covariance is not met.

    Guarantees: class means and covariances equal; mean kept.

    Source: "Quadratic LEACE" of EleutherAI, https://blog.eleuther.ai/oracle-leace/; Alvarez-Esteban et al. 2016,
        https://arxiv.org/abs/1511.05355.

    >>> y = torch.arange(900) % 3
    >>> x = torch.randn(900, 4, dtype=torch.float64) * (1 + y[:, None]) + y[:, None]
    >>> moments = Moments(4, 3, per_class=True)
    >>> after = Moments(4, 3, per_class=True).update(quadratic(moments.update(x, y))(x, y), y).class_covariances
    >>> bool((after - after[0]).abs().max() < 1e-12)
    True
    """
    absent = absent_of(moments)
    gaussians = class_gaussians(moments, ridge)
    maps, goal = maps_to_barycentre(gaussians)
    centres = moments.mean.expand_as(gaussians.means)
    return _eraser("quadratic", moments, gaussians, maps, centres, goal.expand_as(maps), absent)


def mimic(moments: Moments, to: int = 1, *, ridge: float | None = None) -> ConditionalEraser:
    """Return the map that gives the rows of each class the mean and the covariance of one, which stays as it is.

    `e(x, y) = A_y (x - m_y) + m_to`, A_y the optimal transport from the covariance of class y to that of class `to`.

    Args:
        moments: statistics of (x, labels), with `per_class=True`.
        to: the class to take after.
        ridge: as in `quadratic`.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: `to` is unknown or has no rows; or as in `quadratic`.

    Warns:
        UserWarning: as in `quadratic`.

    Guarantees: class means and covariances those of class `to`.

    Source: Singh et al. 2024 (MiMiC), https://arxiv.org/abs/2402.09631, section 4.

    >>> y = torch.arange(800) % 2
    >>> x = torch.randn(800, 3, dtype=torch.float64) * (1 + y[:, None])
    >>> eraser = mimic(Moments(3, 2, per_class=True).update(x, y), to=1)
    >>> torch.equal(eraser(x, y)[1::2], x[1::2]), bool(eraser(x, y)[::2].std() > 1.8)
    (True, True)
    """
    absent = absent_of(moments)
    check_class(moments, "to", to)
    gaussians = class_gaussians(moments, ridge)
    there = int((gaussians.present == to).nonzero())
    goal = gaussians.factors[there]
    stay = torch.eye(moments.dim, dtype=goal.dtype, device=goal.device)  # the rows of class `to`, to the bit
    maps = [stay if i == there else transport_maps(factor, goal)[0] for i, factor in enumerate(gaussians.factors)]
    centres = gaussians.means[there].expand_as(gaussians.means)
    return _eraser("mimic", moments, gaussians, torch.stack(maps), centres, goal.expand_as(gaussians.factors), absent)


def quadratic_editor(moments: Moments, *, ridge: float | None = None) -> ConditionalEraser:
    """Return the map that carries a row of any class to any other, `e(x, y, to)`, by optimal transport.

    It holds k * k matrices: `mimic` holds those to one class. The report's change is that of rows sent to a class drawn
    by its share.

    Args:
        moments: statistics of (x, labels), with `per_class=True`.
        ridge: as in `quadratic`.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: as in `quadratic`.

    Warns:
        UserWarning: as in `quadratic`; rows of a class without rows, and those sent there, stay as they are.

    Guarantees: class means and covariances those of the class that a row is sent to.

    Source: "Quadratic LEACE" of EleutherAI, https://blog.eleuther.ai/oracle-leace/; the editor of the package
        concept-erasure.

    >>> y = torch.arange(800) % 2
    >>> x = torch.randn(800, 3, dtype=torch.float64) * (1 + y[:, None])
    >>> editor = quadratic_editor(Moments(3, 2, per_class=True).update(x, y))
    >>> there = editor(x, y, 1 - y)
    >>> torch.allclose(editor(there, 1 - y, y), x)
    True
    """
    not_erased = list(absent_of(moments))
    gaussians = class_gaussians(moments, ridge)
    present, dim, k = gaussians.present.tolist(), moments.dim, moments.num_classes or 0
    eye = torch.eye(dim, dtype=torch.float64, device=moments.device)
    maps, source, goal = eye.repeat(k, k, 1, 1), eye.new_zeros(k, k, dim), eye.new_zeros(k, k, dim)
    for there, to in enumerate(present):
        source[present, to], goal[present, to] = gaussians.means, gaussians.means[there]
        for here, label in enumerate(present[:there]):
            both = transport_maps(gaussians.factors[here], gaussians.factors[there])
            maps[label, to], maps[to, label] = both
    change = 0.0
    for here, label in enumerate(present):
        covariance, share = gaussians.covariances[here], gaussians.shares[here]
        for there, to in enumerate(present):
            gap = gaussians.means[there] - gaussians.means[here]
            difference = maps[label, to] - eye
            moved = gap.square().sum() + ((difference @ covariance) * difference).sum()
            change += float(share * gaussians.shares[there] * moved)
        # Whether a class is met by the maps that lead to it, and by those that start from it, is told by its factor.
        not_erased += _missed(moments, label, mapping_error(covariance, gaussians.factors[here]))
    warn_of(not_erased)
    report = Report("quadratic_editor", dim, dim, moments.count, change, not_erased=tuple(not_erased))
    return ConditionalEraser(source, goal, maps, method="quadratic_editor", report=report)


def _eraser(
    method: str,
    moments: Moments,
    gaussians: ClassGaussians,
    maps: Tensor,
    centres: Tensor,
    goals: Tensor,
    absent: tuple[str, ...],
) -> ConditionalEraser:
    """Return the eraser of the classes with rows; one without rows stays as it is, and is named."""
    not_erased, change = list(absent), 0.0
    eye = torch.eye(moments.dim, dtype=maps.dtype, device=maps.device)
    gaps = (centres - gaussians.means).square().sum(1)
    parts = zip(gaussians.present.tolist(), gaussians.shares, gaps, maps, gaussians.covariances, goals, strict=True)
    for label, share, gap, transport, covariance, goal in parts:
        difference = transport - eye
        moved = difference @ covariance
        change += float(share * (gap + (moved * difference).sum()))
        mapped = covariance + moved + moved.mT + moved @ difference.mT
        not_erased += _missed(moments, label, mapping_error(mapped, goal))
    warn_of(not_erased)
    k, dim = moments.num_classes or 0, moments.dim
    source, goal = (maps.new_zeros(k, dim) for _ in range(2))
    every = eye.repeat(k, 1, 1)
    source[gaussians.present], goal[gaussians.present], every[gaussians.present] = gaussians.means, centres, maps
    report = Report(method, dim, dim, moments.count, change, not_erased=tuple(not_erased))
    return ConditionalEraser(source, goal, every, method=method, report=report)


def _missed(moments: Moments, label: int, error: float) -> list[str]:
    """Return a line on a class whose mapped covariance is off by so much, if that is too much."""
    if error <= LARGEST_ERROR:
        return []
    return [f"class {label}: its covariance is off by {error:.1g}, it has {int(moments.class_counts[label])} rows"]
