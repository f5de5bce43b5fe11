"""Linear shrinkage of covariance matrices toward a multiple of the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import takes_arrays


@takes_arrays
def optimal_linear_shrinkage(S_n: Tensor, n: int | Tensor) -> Tensor:
    """Return `alpha S + beta I`, the linear shrinkage that is asymptotically optimal in the Frobenius norm.

    With `t = tr S / p` the scale of the target: `1 - alpha = (tr S)^2 / n / (|S|^2 - p t^2)` and
    `beta = (1 - alpha) t`, which keeps the trace.

    Args:
        S_n: (..., p, p) sample covariance matrices, real symmetric or complex Hermitian.
        n: rows that each was estimated from, broadcast against (..., 1, 1).

    Raises:
        ValueError: the matrices are not square.

    Source: Bodnar, Gupta and Parolya 2014, https://arxiv.org/abs/1308.2608, equation 3.8.

    >>> optimal_linear_shrinkage(torch.diag(torch.tensor([3.0, 1.0])), n=100).diagonal()
    tensor([2.9200, 1.0800])
    """
    if S_n.ndim < 2 or S_n.shape[-1] != S_n.shape[-2]:
        raise ValueError(f"S_n has shape {tuple(S_n.shape)}, expected (..., p, p)")
    p = S_n.shape[-1]
    eps = torch.finfo(S_n.dtype).eps
    total = S_n.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None]
    scale = total / p
    size = S_n.abs().square().sum((-2, -1), keepdim=True)
    # Of the target t I: its squared norm p t^2, and its product with S, which is the same number.
    target = p * scale.square()
    # The epsilons decide 0 / 0, for a matrix of zeros: it comes back as it is.
    weight = (total.square() * target / n + eps) / ((size - target) * target + eps)
    identity = torch.eye(p, dtype=S_n.dtype, device=S_n.device)
    return (1 - weight) * S_n + weight * scale * identity
