"""Whitening by a Cholesky factor of the correlation matrix: no eigendecomposition, no tolerance on eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from .._ops import cholesky
from ..statistics import Moments
from ._concept import EPSILON, constant_columns

Shrinkage = Literal["auto"] | bool | float
# Below this many effective rows for each dimension, shrinking is nearer to the population than not shrinking.
ROWS_PER_DIMENSION = 4
ITERATIONS = 4
PANEL = 256
SMALL = 16  # up to here all singular values cost less than a few solves


@dataclass(frozen=True)
class Scaling:
    """The metric in which each column of x counts in its own standard deviations.

    Attributes:
        scale: (d,) standard deviations D, 1 for a constant column.
        constant: (d,) bool, columns without variance.
    """

    scale: Tensor
    constant: Tensor

    def whiten(self, columns: Tensor) -> Tensor:
        """Return `D^-1 columns`."""
        return columns / self.scale[:, None]

    def unwhiten(self, columns: Tensor) -> Tensor:
        """Return `D columns`, zero in the columns of x that are constant."""
        return torch.where(self.constant, 0.0, self.scale)[:, None] * columns

    def inverse_norms(self) -> Tensor:
        """Return how much rounding each column of x brings into what is whitened, in its deviations (d,)."""
        return torch.ones_like(self.scale)

    @cached_property
    def smallest_eigenvalue(self) -> float:
        """That of the correlation matrix as this metric sees it."""
        return 1.0


@dataclass(frozen=True)
class Whitening(Scaling):
    """`D K`, with K K' the correlation matrix, regularised.

    Attributes:
        factor: (d, d) lower triangular K.
        ridge: what was added to the diagonal.
        shrinkage: weight of the identity.
        effective_rank: squared trace over squared norm of the correlation matrix as it was measured: how many
            dimensions the rows fill.
    """

    factor: Tensor
    ridge: float
    shrinkage: float
    effective_rank: float

    def whiten(self, columns: Tensor) -> Tensor:
        """Return `K^-1 D^-1 columns`."""
        return torch.linalg.solve_triangular(self.factor, columns / self.scale[:, None], upper=False)

    def unwhiten(self, columns: Tensor) -> Tensor:
        """Return `D K columns`."""
        return super().unwhiten(self.factor @ columns)

    def readers(self, columns: Tensor) -> Tensor:
        """Return `columns' K^-1 D^-1`, zero for constant columns of x."""
        read = torch.linalg.solve_triangular(self.factor.mT, columns, upper=True).mT
        return read / torch.where(self.constant, torch.inf, self.scale)

    def inverse_norms(self) -> Tensor:
        """Return the norm of each column of K^-1, (d,)."""
        eye = torch.eye(len(self.scale), dtype=torch.float64, device=self.factor.device)
        return torch.linalg.solve_triangular(self.factor, eye, upper=False).norm(dim=0)

    @cached_property
    def smallest_eigenvalue(self) -> float:
        """An estimate, from above, of that of K K'."""
        return smallest_eigenvalue(self.factor)


def smallest_eigenvalue(factor: Tensor) -> float:
    """Return the smallest eigenvalue of K K' (K lower); of a large K an estimate, from above, by inverse iteration."""
    if len(factor) <= SMALL:
        return float(torch.linalg.svdvals(factor)[-1]) ** 2
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(factor), 1, dtype=torch.float64, generator=generator).to(factor.device)
    value = 1.0
    for _ in range(ITERATIONS):
        half = torch.linalg.solve_triangular(factor, vector / vector.norm(), upper=False)
        value = 1 / float(half.square().sum())
        vector = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return value


def scaling_of(moments: Moments, concepts: Sequence[Moments] = ()) -> Scaling:
    """Return the scaling of some moments with at least one row.

    Args:
        moments: the metric.
        concepts: whose rows may vary where those of the metric do not; such a column is scaled by theirs.
    """
    scale, constant = _deviations(moments)
    for one in concepts:
        own, still = _deviations(one)
        scale, constant = torch.where(constant & ~still, own, scale), constant & still
    return Scaling(torch.where(constant, 1.0, scale), constant)


def _deviations(moments: Moments) -> tuple[Tensor, Tensor]:
    """Return the standard deviation of each column (d,), and which are constant."""
    deviation = moments.variance.sqrt()
    return deviation, constant_columns(deviation, moments.mean)


def whitening_of(
    moments: Moments,
    shrinkage: Shrinkage = "auto",
    ridge: float | None = None,
    concepts: Sequence[Moments] = (),
) -> Whitening:
    """Return the whitening of some moments.

    Args:
        moments: with at least one row.
        shrinkage: weight of the identity in the correlation matrix, from 0 to 1; True for the weight of Bodnar et
            al. 2014 (https://arxiv.org/abs/1308.2608); False for none; "auto" for True below 4 rows a dimension.
        ridge: added to the diagonal of the correlation matrix; by default the rounding error of the statistics.
        concepts: as in `scaling_of`.

    Raises:
        ValueError: shrinkage or ridge is out of range.
    """
    d = moments.dim
    scaling = scaling_of(moments, concepts)
    correlation = moments.scaled_covariance(torch.where(scaling.constant, 0.0, 1 / scaling.scale))
    spread = _spread(correlation)
    varying = d - int(scaling.constant.sum())
    weight = _shrinkage_weight(d, spread, moments.effective_count, shrinkage)
    if ridge is not None and not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge is {ridge}, expected a finite number >= 0")
    tau = (
        max(4 * d * EPSILON, moments.relative_error if moments.relative_error > 1e-9 else 0) if ridge is None else ridge
    )
    if weight:
        correlation.mul_(1 - weight)
    factor, ridge = factored(correlation, tau)
    effective_rank = varying**2 / (varying + spread) if varying else 0.0
    return Whitening(scaling.scale, scaling.constant, factor, ridge, weight, effective_rank)


def factored(correlation: Tensor, ridge: float) -> tuple[Tensor, float]:
    """Return the Cholesky factor of a correlation matrix whose diagonal is set to 1 plus a ridge, and that ridge.

    The ridge grows tenfold until the matrix can be factored; only the lower triangle of the matrix counts.

    Raises:
        ValueError: no ridge up to 1 is enough.
    """
    while True:
        correlation.diagonal().fill_(1 + ridge)
        factor, failed = cholesky(correlation)
        if not failed:
            return factor, ridge
        ridge = max(10 * ridge, 4 * len(correlation) * EPSILON)
        if ridge > 1:
            raise ValueError("the second moment is not that of any data: the moments were damaged or removed too far")


def _spread(correlation: Tensor) -> float:
    """Return the sum of the squared entries beside the diagonal, of a matrix of which the lower triangle counts."""
    half = 0.0
    for begin in range(0, len(correlation), PANEL):  # a triangle is copied by such blocks only, not as a whole
        rows = correlation[begin : begin + PANEL]
        own = rows[:, begin : begin + PANEL].tril(-1)
        half += float(rows[:, :begin].square().sum() + own.square().sum())
    return 2 * half


def _shrinkage_weight(d: int, spread: float, rows: float, shrinkage: Shrinkage) -> float:
    """Return the weight of the identity, of a correlation matrix (d, d) with such a `_spread`."""
    if shrinkage == "auto":
        shrinkage = rows < ROWS_PER_DIMENSION * d
    if not isinstance(shrinkage, bool):
        if not isinstance(shrinkage, (int, float)) or not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage is {shrinkage!r}, expected 'auto', True, False or a weight from 0 to 1")
        return float(shrinkage)
    if not shrinkage:
        return 0.0
    return min(1.0, d * d / rows / spread) if spread > 0 else 1.0
