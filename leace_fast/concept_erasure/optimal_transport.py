"""Optimal transport between centred Gaussians, given by covariance matrices: batched, real or complex, differentiable.

The engine's own `quadratic` works on Cholesky factors of real covariances; here the covariances themselves come in
and go out, as that package's functions have it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import takes_arrays

STEPS = 100


@takes_arrays
def is_positive_definite(A: Tensor) -> Tensor:
    """Return whether each matrix (..., d, d) is positive definite, (...) bool."""
    return torch.linalg.cholesky_ex(A).info == 0


@takes_arrays
def psd_sqrt(A: Tensor) -> Tensor:
    """Return the positive semidefinite square root of positive semidefinite matrices (..., d, d)."""
    values, vectors = torch.linalg.eigh(A)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mH


@takes_arrays
def psd_sqrt_rsqrt(A: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root and its pseudo-inverse of positive semidefinite matrices (..., d, d)."""
    values, vectors = torch.linalg.eigh(A)
    roots = values.clamp_min(0).sqrt()[..., None, :]
    floor = values[..., -1:, None] * A.shape[-1] * torch.finfo(A.dtype).eps
    inverse = torch.where(roots.square() > floor, 1 / roots.clamp_min(torch.finfo(roots.dtype).tiny), 0.0)
    return (vectors * roots) @ vectors.mH, (vectors * inverse) @ vectors.mH


@takes_arrays
def ot_map(K1: Tensor, K2: Tensor) -> Tensor:
    """Return the positive semidefinite A with `A K1 A = K2`, the optimal map from N(0, K1) to N(0, K2).

    Args:
        K1, K2: (..., d, d) covariance matrices, broadcast against each other.

    Source: Knott and Smith 1984, https://doi.org/10.1007/BF00934745.

    >>> ot_map(torch.eye(2), 4 * torch.eye(2)).diagonal().round(decimals=4)
    tensor([2., 2.])
    """
    root, inverse = psd_sqrt_rsqrt(K1)
    return inverse @ psd_sqrt(root @ K2 @ root) @ inverse


@takes_arrays
def ot_distance(K1: Tensor, K2: Tensor) -> Tensor:
    """Return the 2-Wasserstein distance between N(0, K1) and N(0, K2), (...).

    Source: Dowson and Landau 1982, https://doi.org/10.1016/0047-259X(82)90077-X.

    >>> round(float(ot_distance(torch.eye(2), 4 * torch.eye(2))), 4)
    1.4142
    """
    root = psd_sqrt(K1)
    return torch.sqrt(_trace(K1) + _trace(K2) - 2 * _trace(psd_sqrt(root @ K2 @ root)))


@takes_arrays
def ot_midpoint(K1: Tensor, K2: Tensor, w1: float = 0.5, w2: float = 0.5) -> Tensor:
    """Return the covariance of the barycentre of N(0, K1) and N(0, K2) with weights that add up to one.

    It is `M K1 M` with M the weighted mean of the identity and the optimal map from K1 to K2.

    Source: Agueh and Carlier 2011, https://doi.org/10.1137/100805741, section 6.2.

    >>> ot_midpoint(torch.eye(1), 9 * torch.eye(1)).round(decimals=4)
    tensor([[4.]])
    """
    step = w1 * torch.eye(K1.shape[-1], dtype=K1.dtype, device=K1.device) + w2 * ot_map(K1, K2)
    return step @ K1 @ step.mH


@takes_arrays
def ot_barycenter(Ks: Tensor, weights: Tensor | None = None, *, max_iter: int = STEPS) -> Tensor:
    """Return the covariance of the barycentre of several centred Gaussians.

    Args:
        Ks: (n, d, d) covariance matrices, n >= 2.
        weights: (n,) >= 0, scaled to add up to one; by default equal.
        max_iter: fixed-point steps at most.

    Raises:
        ValueError: there are fewer than two matrices, or not one weight for each.

    Source: Alvarez-Esteban et al. 2016, https://arxiv.org/abs/1511.05355, equation 7.

    >>> ot_barycenter(torch.stack([torch.eye(1), 4 * torch.eye(1), 9 * torch.eye(1)])).round(decimals=3)
    tensor([[4.]])
    """
    if len(Ks) < 2:
        raise ValueError(f"got {len(Ks)} covariance matrices, expected at least two to find a barycentre of")
    weights = Ks.real.new_ones(len(Ks)) if weights is None else weights
    if weights.shape != (len(Ks),):
        raise ValueError(f"got weights of shape {tuple(weights.shape)}, expected one for each of {len(Ks)} matrices")
    shares = (weights / weights.sum())[:, None, None].to(Ks.dtype)
    centre = (shares * Ks).sum(0)
    eye = torch.eye(len(centre), dtype=Ks.dtype, device=Ks.device)
    close = len(centre) * torch.finfo(Ks.dtype).eps
    for _ in range(max_iter):
        step = (shares * ot_map(centre, Ks)).sum(0)
        centre = step @ centre @ step.mH
        if bool((step - eye).abs().max() < close):
            break
    return centre


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).real.sum(-1)
