"""The orthogonal projection about the mean that drops the concept's directions: spectral attribute removal, centred."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..erasers import Eraser
from ..fitting import check_rank, concept_subspace, fitted, on_one_thread, warn_of
from ..statistics import Moments


@on_one_thread
def orth(moments: Moments | Sequence[Moments], *, rank: int | None = None) -> Eraser:
    """Return the orthogonal projection `x - U U' (x - m)`, U the left singular vectors of the cross-covariance.

    It needs no covariance of x and changes x more than `leace` does.

    Args:
        moments: statistics of (x, labels); or several, of the same x, whose concepts are all erased.
        rank: drop only so many vectors, those of the largest singular values.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: no rows, one class only, non-finite rows, or rank is out of range.

    Warns:
        UserWarning: a class or a direction was not erased; `report.not_erased` says which and why.

    Guarantees: class means equal; mean kept.

    Source: Shao, Ziser and Cohen 2023 (SAL), https://arxiv.org/abs/2203.07893, section 3; about the mean.

    >>> import torch
    >>> y = torch.arange(900) % 3
    >>> x = torch.randn(900, 8, dtype=torch.float64) + torch.eye(8)[y] * 5
    >>> eraser = orth(Moments(8, 3).update(x, y))
    >>> bool(Moments(8, 3).update(eraser(x), y).class_mean_differences.abs().max() < 1e-12)
    True
    """
    check_rank(rank)
    found = concept_subspace(moments)
    basis, not_erased = found.basis, found.not_erased
    if rank is not None and rank < basis.shape[1]:
        cross = torch.cat([one.cross_covariance for one in found.every], 1)
        basis, left_out = found.strongest(cross, rank)
        not_erased = [*not_erased, left_out]
    warn_of(found.not_erased)
    return fitted("orth", found.main, basis, basis.mT, found.main.mean, not_erased=not_erased, concepts=found.concepts)
