"""The control: a random subspace of the same rank, erased about the mean."""

from __future__ import annotations

import torch

from ..erasers import Eraser
from ..statistics import Moments


def random_subspace(moments: Moments, rank: int, *, seed: int = 0) -> Eraser:
    """Return the orthogonal projection about the mean that removes a uniformly random subspace.

    Args:
        moments: statistics of x; only the mean is used.
        rank: dimension of the subspace, 0 to dim.
        seed: of the draw.

    Raises:
        ValueError: no rows, or rank is out of range.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, section 5 (the random control).

    >>> import torch
    >>> moments = Moments(8, 2).update(torch.randn(50, 8), torch.arange(50) % 2)
    >>> random_subspace(moments, 3).rank
    3
    """
    if not 0 <= rank <= moments.dim:
        raise ValueError(f"rank is {rank}, expected 0 to {moments.dim}")
    generator = torch.Generator().manual_seed(seed)
    # The Q factor of a Gaussian matrix spans a uniformly distributed subspace.
    basis = torch.linalg.qr(torch.randn(moments.dim, rank, dtype=torch.float64, generator=generator))[0]
    basis = basis.to(moments.device)
    return Eraser(basis, basis.mT, moments.mean, method="random")
