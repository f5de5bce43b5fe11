"""Quadratic LEACE, its editor and MiMiC: each class carried to one Gaussian by optimal transport; labels needed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..conditional import ConditionalEraser
from ..moments import Moments
from ..report import Report
from ._concept import concept_of
from ._fitted import check_class, warn_of
from ._transport import (
    ClassGaussians,
    barycentre,
    class_gaussians,
    mapping_error,
    mean_squared_distance,
    transport_map,
)

LARGEST_ERROR = 1e-3  # of a mapped covariance, beyond which a class is said not to be erased


def quadratic(moments: Moments, *, ridge: float | None = None) -> ConditionalEraser:
    """Return the eraser that carries each class to the barycentre of all: no quadratic classifier can tell them.

    `e(x, y) = A_y (x - m_y) + m`, A_y the optimal transport from the covariance of class y to the barycentre, m the
    mean of all rows. Mean and covariance of all classes are the same afterwards, and the overall mean is kept.

    Args:
        moments: statistics of (x, labels), with `per_class=True`.
        ridge: added to each class covariance, a share of the variances; by default rounding's.

    Raises:
        ValueError: no class covariances, no rows, one class only, non-finite rows, or ridge is out of range.

    Warns:
        UserWarning: a class has no rows, or so few, or of so few digits, that its covariance is not met.

    Source: "Quadratic LEACE" of EleutherAI, https://blog.eleuther.ai/oracle-leace/; Alvarez-Esteban et al. 2016,
        https://arxiv.org/abs/1511.05355.

    >>> y = torch.arange(900) % 3
    >>> x = torch.randn(900, 4, dtype=torch.float64) * (1 + y[:, None]) + y[:, None]
    >>> moments = Moments(4, 3, per_class=True)
    >>> after = Moments(4, 3, per_class=True).update(quadratic(moments.update(x, y))(x, y), y).class_covariances
    >>> bool((after - after[0]).abs().max() < 1e-12)
    True
    """
    absent = concept_of(moments).absent
    gaussians = class_gaussians(moments, ridge)
    goal = barycentre(gaussians)
    maps = torch.stack([transport_map(factor, goal) for factor in gaussians.factors])
    targets = moments.mean.expand_as(gaussians.means)
    return _eraser("quadratic", moments, gaussians, maps, targets, goal.expand_as(maps), absent)


def mimic(moments: Moments, target: int = 1, *, ridge: float | None = None) -> ConditionalEraser:
    """Return the map that gives the rows of each class the mean and the covariance of one, which stays as it is.

    `e(x, y) = A_y (x - m_y) + m_t`, A_y the optimal transport from the covariance of class y to that of the target.

    Args:
        moments: statistics of (x, labels), with `per_class=True`.
        target: the class to take after.
        ridge: as in `quadratic`.

    Raises:
        ValueError: the target is unknown or has no rows; or as in `quadratic`.

    Warns:
        UserWarning: as in `quadratic`.

    Source: Singh et al. 2024 (MiMiC), https://arxiv.org/abs/2402.09631, section 4.

    >>> y = torch.arange(800) % 2
    >>> x = torch.randn(800, 3, dtype=torch.float64) * (1 + y[:, None])
    >>> eraser = mimic(Moments(3, 2, per_class=True).update(x, y), target=1)
    >>> torch.equal(eraser(x, y)[1::2], x[1::2]), bool(eraser(x, y)[::2].std() > 1.8)
    (True, True)
    """
    absent = concept_of(moments).absent
    check_class(moments, "target", target)
    gaussians = class_gaussians(moments, ridge)
    goal = int((gaussians.present == target).nonzero())
    maps = _maps_to(gaussians, goal)
    targets = gaussians.means[goal].expand_as(gaussians.means)
    return _eraser("mimic", moments, gaussians, maps, targets, gaussians.factors[goal].expand_as(maps), absent)


def quadratic_editor(moments: Moments, *, ridge: float | None = None) -> ConditionalEraser:
    """Return the map that carries a row of any class to any other, `e(x, y, to)`, by optimal transport.

    It holds k * k matrices: `mimic` holds those to one class. The report's change is that of rows sent to a class drawn
    by its share.

    Args:
        moments: statistics of (x, labels), with `per_class=True`.
        ridge: as in `quadratic`.

    Raises:
        ValueError: as in `quadratic`.

    Warns:
        UserWarning: a class has no rows; its rows, and those sent there, stay as they are.

    Source: as `quadratic`; the editor of the concept-erasure package.

    >>> y = torch.arange(800) % 2
    >>> x = torch.randn(800, 3, dtype=torch.float64) * (1 + y[:, None])
    >>> editor = quadratic_editor(Moments(3, 2, per_class=True).update(x, y))
    >>> there = editor(x, y, 1 - y)
    >>> torch.allclose(editor(there, 1 - y, y), x)
    True
    """
    absent = concept_of(moments).absent
    gaussians = class_gaussians(moments, ridge)
    warn_of(list(absent))
    count, dim, k = len(gaussians.present), moments.dim, moments.num_classes or 0
    eye = torch.eye(dim, dtype=torch.float64, device=moments.device)
    maps, source, target = eye.repeat(k, k, 1, 1), eye.new_zeros(k, k, dim), eye.new_zeros(k, k, dim)
    change = 0.0
    for goal in range(count):
        to, there = int(gaussians.present[goal]), _maps_to(gaussians, goal)
        for i, share in enumerate(gaussians.shares * gaussians.shares[goal]):
            gap = gaussians.means[goal] - gaussians.means[i]
            change += float(share) * mean_squared_distance(gap, there[i], gaussians.covariances[i])
        maps[gaussians.present, to] = there
        source[gaussians.present, to] = gaussians.means
        target[gaussians.present, to] = gaussians.means[goal]
    report = Report("quadratic_editor", dim, dim, moments.count, change, not_erased=absent)
    return ConditionalEraser(source, target, maps, method="quadratic_editor", report=report)


def _maps_to(gaussians: ClassGaussians, goal: int) -> Tensor:
    """Return the maps (c, d, d) from each class to one, which itself stays to the bit."""
    target = gaussians.factors[goal]
    maps = torch.stack([transport_map(factor, target) for factor in gaussians.factors])
    maps[goal] = torch.eye(len(target), dtype=target.dtype, device=target.device)
    return maps


def _eraser(
    method: str,
    moments: Moments,
    gaussians: ClassGaussians,
    maps: Tensor,
    targets: Tensor,
    goals: Tensor,
    absent: tuple[str, ...],
) -> ConditionalEraser:
    """Return the eraser of the classes with rows; one without rows stays as it is, and is named."""
    not_erased, change = list(absent), 0.0
    parts = zip(gaussians.present.tolist(), gaussians.shares, maps, gaussians.covariances, goals, strict=True)
    for position, (label, share, transport, covariance, goal) in enumerate(parts):
        gap = targets[position] - gaussians.means[position]
        change += float(share) * mean_squared_distance(gap, transport, covariance)
        error = mapping_error(transport, covariance, goal)
        if error > LARGEST_ERROR:
            count = int(moments.class_counts[label])
            not_erased.append(f"class {label}: its covariance is off by {error:.1g}, it has {count} rows")
    warn_of(not_erased)
    k, dim = moments.num_classes or 0, moments.dim
    source, target = (maps.new_zeros(k, dim) for _ in range(2))
    every = torch.eye(dim, dtype=maps.dtype, device=maps.device).repeat(k, 1, 1)
    source[gaussians.present], target[gaussians.present], every[gaussians.present] = gaussians.means, targets, maps
    report = Report(method, dim, dim, moments.count, change, not_erased=tuple(not_erased))
    return ConditionalEraser(source, target, every, method=method, report=report)
