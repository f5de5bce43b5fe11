"""Optimal transport between Gaussians, from Cholesky factors and singular values: no matrix is squared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..moments import Moments
from ..reference import cholesky
from ._whitening import EPSILON, scaling_of

STEPS = 200
CONVERGED = 1e-13


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


def transport_map(source: Tensor, target: Tensor) -> Tensor:
    """Return the symmetric A (d, d) with `A S A = T`, that of least squared change, from Cholesky factors of S and T.

    With S = K K' and the singular values of `F' K = U s V'` (T = F F') it is `K^-T V s V' K^-1`.

    Source: Knott and Smith 1984, https://doi.org/10.1007/BF00934745, the optimal map between Gaussians.
    """
    _, values, vectors = torch.linalg.svd(target.mT @ source)
    half = torch.linalg.solve_triangular(source.mT, (values.sqrt()[:, None] * vectors).mT, upper=True)
    return half @ half.mT


def barycentre(gaussians: ClassGaussians) -> Tensor:
    """Return the Cholesky factor of the covariance whose mean squared Wasserstein distance from all classes is least.

    In closed form for two; else by steps `S <- T S T`, T the mean of the maps from S to each class.

    Source: Alvarez-Esteban et al. 2016, https://arxiv.org/abs/1511.05355, equation 7.
    """
    shares, factors = gaussians.shares, gaussians.factors
    eye = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
    if len(factors) == 2:
        step = shares[0] * eye + shares[1] * transport_map(factors[0], factors[1])
        return _lower(step @ factors[0])
    factor = factors[int(shares.argmax())]
    for _ in range(STEPS):
        maps = (share * transport_map(factor, goal) for share, goal in zip(shares, factors, strict=True))
        step = torch.stack(list(maps)).sum(0)
        factor = _lower(step @ factor)
        if float((step - eye).abs().max()) < CONVERGED * len(eye):
            break
    return factor


def _lower(root: Tensor) -> Tensor:
    """Return the lower triangular factor K with `K K' = root root'`."""
    triangle = torch.linalg.qr(root.mT)[1].mT
    return triangle * torch.where(triangle.diagonal() < 0, -1.0, 1.0)


def mapping_error(transport: Tensor, covariance: Tensor, target: Tensor) -> float:
    """Return how far `A S A'` is from T = F F', in units of T."""
    mapped = transport @ covariance @ transport.mT
    whitened = torch.linalg.solve_triangular(target, mapped, upper=False)
    whitened = torch.linalg.solve_triangular(target, whitened.mT, upper=False)
    return float((whitened - torch.eye(len(target), dtype=target.dtype, device=target.device)).abs().max())


def mean_squared_distance(gap: Tensor, transport: Tensor, covariance: Tensor) -> float:
    """Return `|gap|^2 + tr (A - I) S (A - I)'`: what rows of covariance S change by when mapped and moved."""
    change = transport - torch.eye(len(transport), dtype=transport.dtype, device=transport.device)
    return float(gap.square().sum() + ((change @ covariance) * change).sum())
