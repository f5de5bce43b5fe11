"""Erasure with labels at hand: the least-squares residual of x given z."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._ops import takes_arrays
from ..fitting import DEPENDENT
from ._fitter import Fitter


@dataclass(frozen=True)
class OracleEraser:
    """Replaces x by what is left of it after a linear regression on z.

    Attributes:
        coef: (d, k) regression coefficients.
        mean_z: (k,) mean of z.
    """

    coef: Tensor
    mean_z: Tensor

    @classmethod
    @takes_arrays
    def fit(cls, x: Tensor, z: Tensor, **kwargs) -> OracleEraser:
        """Return the eraser of rows x (n, d) with concepts z (n,) or (n, k); options as in `OracleFitter`."""
        return OracleFitter.fit(x, z, **kwargs).eraser

    @takes_arrays
    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the erased rows, of the shape and dtype of x."""
        z = z.reshape(*x.shape[:-1], len(self.mean_z)).to(self.mean_z.dtype)
        return (x - (z - self.mean_z) @ self.coef.mT).to(x.dtype)

    def to(self, device: torch.device | str) -> OracleEraser:
        """Return the eraser on another device."""
        return OracleEraser(self.coef.to(device), self.mean_z.to(device))


class OracleFitter(Fitter[OracleEraser]):
    """Streams what `OracleEraser` needs.

    Args:
        x_dim: width of x.
        z_dim: width of z.
        device, dtype: of what is handed out; sums are kept in float64.
        shrinkage: shrink the covariance of z toward the identity.
        svd_tol: drop directions of z whose variance is below this; by default those that rounding cannot tell from
            zero, however rare a class is.

    Raises:
        ValueError: svd_tol is not positive.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, theorem 4.4.

    >>> x, z = torch.randn(100, 4), torch.arange(100) % 2
    >>> eraser = OracleFitter(4, 1).update(x, z).eraser
    >>> rest = eraser(x, z)
    >>> bool((rest[z == 0].mean(0) - rest[z == 1].mean(0)).abs().max() < 1e-5)
    True
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        shrinkage: bool = False,
        svd_tol: float | None = None,
    ) -> None:
        super().__init__(x_dim, z_dim, device, dtype, shrinkage, svd_tol)

    def _fit(self) -> OracleEraser:
        return OracleEraser(self._statistics.handed_out(self._coefficients()), self.mean_z)

    def _coefficients(self) -> Tensor:
        cross = self._statistics.sums_xz / self._statistics.degrees_of_freedom
        sigma = self._covariance(self._statistics.sums_zz)
        if self.svd_tol is not None:
            return cross @ torch.linalg.pinv(sigma, atol=self.svd_tol, hermitian=True)
        # At unit variance, rare classes count like all others.
        spread = sigma.diagonal().real.clamp_min(0).sqrt()
        scale = torch.where(spread > 0, spread, 1.0)
        inverse = torch.linalg.pinv(sigma / torch.outer(scale, scale), rtol=DEPENDENT, hermitian=True)
        return (cross / scale) @ inverse / scale

    @property
    def sigma_zz_(self) -> Tensor:
        """Unnormalised covariance of z (z_dim, z_dim)."""
        return self._statistics.handed_out(self._statistics.sums_zz)

    @property
    def sigma_zz(self) -> Tensor:
        """Covariance of z (z_dim, z_dim), shrunk if that was asked for.

        Raises:
            ValueError: there are fewer than two rows.
        """
        return self._statistics.handed_out(self._covariance(self._statistics.sums_zz))
