"""The control for what erasure costs: random subspaces."""

from __future__ import annotations

import torch

from ..erasers import Eraser
from ..scrubbing import Scrubber


def random_like(scrubber: Scrubber, seed: int = 0) -> Scrubber:
    """Random subspaces of the same rank at each site, each about the same mean: the control for what erasure costs.

    Args:
        scrubber: the erasers whose sites, ranks and means are taken.
        seed: of the draw.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, section 6 (the random control).

    >>> scrubber = Scrubber({"norm": Eraser(torch.eye(4)[:, :2], torch.eye(4)[:2])})
    >>> random_like(scrubber)["norm"].rank
    2
    """
    generator = torch.Generator().manual_seed(seed)
    erasers = {}
    for site, eraser in scrubber.items():
        basis = torch.randn(eraser.dim, eraser.rank, dtype=torch.float64, generator=generator)
        # the Q factor of a Gaussian matrix spans a uniformly distributed subspace
        basis = torch.linalg.qr(basis)[0].to(eraser.device)
        erasers[site] = Eraser(basis, basis.mT, eraser.mean, method="random")
    made = Scrubber(erasers, scrubber.model_id, scrubber.revision, scrubber.config)
    return made._knowing(scrubber._seen)
