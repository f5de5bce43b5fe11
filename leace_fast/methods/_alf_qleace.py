"""ALF-QLEACE: LEACE, then the directions along which the covariances of the classes differ most; no labels needed."""

from __future__ import annotations

import torch

from ..erasers import Eraser
from ..fitting import Shrinkage, check_moments, check_rank, fitted, on_one_thread
from ..statistics import Moments
from ._leace import leace


@on_one_thread
def alf_qleace(
    moments: Moments,
    *,
    share: float = 0.9,
    max_rank: int | None = None,
    shrinkage: Shrinkage = "auto",
    ridge: float | None = None,
) -> Eraser:
    """Return the eraser of the concept's means, and of most of what its class covariances tell, without labels.

    After `leace`, directions are dropped about the mean one by one: always the leading eigenvector, by magnitude, of
    `S_j - S` for the class j whose covariance is farthest from that within all classes in the Frobenius norm, until
    the farthest is at most `1 - share` of what it was. Class means coincide exactly; covariances only nearly so:
    `quadratic` makes them equal, but needs labels.

    Args:
        moments: statistics of (x, labels), with `per_class=True`.
        share: of the largest covariance difference, how much to erase, 0 to 1.
        max_rank: drop at most so many directions beside those of `leace`.
        shrinkage, ridge: as in `leace`.

    Raises:
        TypeError: `moments` are no `Moments`.
        ValueError: no class covariances, or share or max_rank out of range; or as in `leace`.

    Warns:
        UserWarning: a class or a direction was not erased; `report.not_erased` says which and why.

    Guarantees: class means equal; class covariances apart by at most `1 - share` of what they were; mean kept.

    Source: Quirke and Belrose 2025, https://arxiv.org/abs/2502.02820 (approximate label-free quadratic LEACE), as
        EleutherAI's code of it (alf_qleace.py) has it, but for this: there class moments are sums, so that larger
        classes differ more, and are projected by `P S P`, though LEACE's P is oblique; each step takes the class of
        the largest eigenvalue; and the directions are dropped about the origin. Here they are covariances, projected
        by `P S P'`; the class that is farthest in the Frobenius norm, which is what must fall; and about the mean.

    >>> y = torch.arange(4000) % 2
    >>> x = torch.randn(4000, 5, dtype=torch.float64)
    >>> x[:, 0] += 5 * y
    >>> x[:, 3] *= 1 + 4 * y
    >>> eraser = alf_qleace(Moments(5, 2, per_class=True).update(x, y))
    >>> eraser.rank
    2
    """
    check_moments(moments)
    check_rank(max_rank)
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected a number from 0 to 1")
    covariances = moments.class_covariances
    first = leace(moments, shrinkage=shrinkage, ridge=ridge)
    present = moments.class_weights > 0
    shares = moments.class_weights[present] / moments.total_weight
    projection = torch.eye(moments.dim, dtype=torch.float64, device=moments.device) - first.left @ first.right
    differences = covariances[present] - torch.einsum("k,kij->ij", shares, covariances[present])
    differences = projection @ differences @ projection.mT

    farthest = differences.norm(dim=(1, 2))
    before, floor = float(farthest.max()), (1 - share) * float(farthest.max())
    dropped = projection.new_zeros(moments.dim, 0)
    while farthest.max() > floor and dropped.shape[1] < (max_rank or moments.dim):
        values, vectors = torch.linalg.eigh(differences[farthest.argmax()])
        vector = vectors[:, values.abs().argmax()]
        vector = vector - dropped @ (dropped.mT @ vector)
        vector = vector / vector.norm()
        dropped = torch.cat([dropped, vector[:, None]], 1)
        # (I - v v') M (I - v v') without a product of matrices.
        seen = differences @ vector
        middle = seen - 0.5 * (seen @ vector)[:, None] * vector
        differences = differences - middle[:, :, None] * vector - vector[:, None] * middle[:, None, :]
        farthest = differences.norm(dim=(1, 2))

    both = first.compose(Eraser(dropped, dropped.mT, moments.mean))
    left = f"class covariances: {float(farthest.max()) / before if before else 0.0:.2g} of their difference is left"
    not_erased = [*(first.report.not_erased if first.report else ()), left]
    return fitted("alf_qleace", moments, both.left, both.right, both.mean, not_erased=not_erased)
