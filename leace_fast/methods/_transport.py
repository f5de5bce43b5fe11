"""Optimal transport between Gaussians, from Cholesky factors and singular values: no matrix is squared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._ops import cholesky
from ..fitting import EPSILON, scaling_of
from ..statistics import Moments

STEPS = 200
CONVERGED = 1e-9  # at the barycentre the distances have no slope: an error of 1e-9 costs them 1e-18
ROUNDING = 1e-5  # steps below it that grow again are rounding


@dataclass(frozen=True)
class ClassGaussians:
    """Mean and covariance of each class with rows.

    Attributes:
        present: (c,) the classes with rows.
        shares: (c,) of the total weight.
        means: (c, d).
        covariances: (c, d, d) as they are.
        factors: (c, d, d) lower Cholesky factors of the covariances plus a ridge.
    """

    present: Tensor
    shares: Tensor
    means: Tensor
    covariances: Tensor
    factors: Tensor


def class_gaussians(moments: Moments, ridge: float | None = None) -> ClassGaussians:
    """Return the Gaussians of the classes; the ridge is a share of each variance.

    Raises:
        ValueError: no class covariances were kept, or the ridge is out of range.
    """
    if ridge is not None and not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge is {ridge}, expected a finite number >= 0")
    covariances = moments.class_covariances
    present = (moments.class_counts > 0).nonzero().flatten()
    covariances = covariances[present]
    # A column that is constant everywhere is given a variance of its own, so that every map leaves it alone.
    constant = scaling_of(moments).constant
    covariances[:, constant], covariances[:, :, constant] = 0.0, 0.0
    covariances.diagonal(dim1=-2, dim2=-1)[:, constant] = 1.0
    least = max(4 * moments.dim * EPSILON, moments.relative_error if moments.relative_error > 1e-9 else 0.0)
    pooled = torch.where(constant, 1.0, moments.variance)
    factors = torch.stack([_factor(covariance, pooled, ridge, least) for covariance in covariances])
    shares = moments.class_weights[present] / moments.total_weight
    return ClassGaussians(present, shares, moments.class_means[present], covariances, factors)


def _factor(covariance: Tensor, pooled: Tensor, ridge: float | None, least: float) -> Tensor:
    """Return the Cholesky factor of a class's covariance, in units of its deviations while it is found."""
    # A column that is constant in this class alone gets a little of its variance elsewhere.
    scale = torch.maximum(covariance.diagonal(), EPSILON * pooled).sqrt()
    correlation = covariance / torch.outer(scale, scale)
    tau = least if ridge is None else ridge
    while True:
        correlation.diagonal().fill_(1 + tau)
        factor, failed = cholesky(correlation)
        if not failed:
            return scale[:, None] * factor
        tau = max(10 * tau, least)
        if tau > 1:
            raise ValueError("a class covariance is not that of any data: the moments were damaged or removed too far")


def transport_maps(source: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric A (d, d) with `A S A = T`, that of least squared change, and its inverse, which leads back.

    With S = K K', T = F F' and the singular values of `F' K = U s V'`, they are `K^-T V s V' K^-1` and
    `F^-T U s U' F^-1`: one decomposition serves both ways. What is given are the lower Cholesky factors K and F.

    Source: Knott and Smith 1984, https://doi.org/10.1007/BF00934745, the optimal map between Gaussians.
    """
    u, values, v = torch.linalg.svd(goal.mT @ source)
    root = values.sqrt()
    return _squared(source, v.mT * root), _squared(goal, u * root)


def _squared(factor: Tensor, columns: Tensor) -> Tensor:
    """Return `K^-T C C' K^-1`, symmetric to the bit."""
    half = torch.linalg.solve_triangular(factor.mT, columns, upper=True)
    return half @ half.mT


def maps_to_barycentre(gaussians: ClassGaussians) -> tuple[Tensor, Tensor]:
    """Return the maps (c, d, d) from each class to the Gaussian nearest to all, and the factor of its covariance.

    Nearest is that of least mean squared Wasserstein distance. For two classes it lies on the way from one to the
    other, which the map between them gives; for more it is found by steps.
    """
    shares, factors = gaussians.shares, gaussians.factors
    if len(factors) > 2:
        goal = _barycentre(shares, factors)
        return torch.stack([transport_maps(factor, goal)[0] for factor in factors]), goal
    eye = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
    there, back = transport_maps(*factors)
    maps = torch.stack([shares[0] * eye + shares[1] * there, shares[1] * eye + shares[0] * back])
    return maps, _lower(maps[0] @ factors[0])


def _barycentre(shares: Tensor, factors: Tensor) -> Tensor:
    """Return the factor of the barycentre's covariance, by steps `S <- T S T`, T the mean of the maps to each class.

    With S = K K', T S^1/2 is a root of the next S: `K^-T M`, M the mean of the roots of `K' S_j K`. Rounding of one
    step is made good by the next, so that an eigendecomposition of the squares is enough here.

    Source: Alvarez-Esteban et al. 2016, https://arxiv.org/abs/1511.05355, equation 7.
    """
    factor = factors[int(shares.argmax())]
    eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    last = 1.0
    for _ in range(STEPS):
        mean = torch.zeros_like(factor)
        for share, goal in zip(shares, factors, strict=True):
            product = goal.mT @ factor
            values, vectors = torch.linalg.eigh(product.mT @ product)
            mean += (vectors * (share * values.clamp_min(0).sqrt())) @ vectors.mT
        root = torch.linalg.solve_triangular(factor.mT, mean, upper=True)
        step = torch.linalg.solve_triangular(factor.mT, root.mT, upper=True)
        factor, moved = _lower(root), float((step - eye).abs().max())
        shrunk = moved / last  # about the same from step to step: so much of the last one is still to go, and so on
        if moved * shrunk < CONVERGED * (1 - shrunk) or last <= moved < ROUNDING:
            break
        last = moved
    return factor


def _lower(root: Tensor) -> Tensor:
    """Return the lower triangular factor K with `K K' = root root'`."""
    triangle = torch.linalg.qr(root.mT)[1].mT
    return triangle * torch.where(triangle.diagonal() < 0, -1.0, 1.0)


def mapping_error(mapped: Tensor, goal: Tensor) -> float:
    """Return how far a covariance is from T = F F', in units of T: the largest entry of `F^-1 S F^-T - I`."""
    whitened = torch.linalg.solve_triangular(goal, mapped, upper=False)
    whitened = torch.linalg.solve_triangular(goal, whitened.mT, upper=False)
    return float((whitened - torch.eye(len(goal), dtype=goal.dtype, device=goal.device)).abs().max())
