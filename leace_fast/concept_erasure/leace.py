"""`LeaceFitter` and `LeaceEraser`: the names of the package `concept-erasure`, on `Moments` and its closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._ops import compute_dtype, project, takes_arrays
from .._warnings import warn
from ._closed_form import projection_factors
from ._fitter import Fitter

ErasureMethod = Literal["leace", "orth"]


@dataclass(frozen=True)
class LeaceEraser:
    """The map `x - (x - bias) (proj_left proj_right)^H`.

    Attributes:
        proj_left: (d, r).
        proj_right: (r, d).
        bias: (d,) the point that stays where it is, or None for the origin.
    """

    proj_left: Tensor
    proj_right: Tensor
    bias: Tensor | None

    @classmethod
    @takes_arrays
    def fit(cls, x: Tensor, z: Tensor, **kwargs) -> LeaceEraser:
        """Return the eraser of rows x (n, d) with concepts z (n,) or (n, k); options as in `LeaceFitter`."""
        return LeaceFitter.fit(x, z, **kwargs).eraser

    @property
    def P(self) -> Tensor:
        """The projection matrix (d, d)."""
        eye = torch.eye(len(self.proj_left), device=self.proj_left.device, dtype=self.proj_left.dtype)
        return eye - self.proj_left @ self.proj_right

    @takes_arrays
    def __call__(self, x: Tensor) -> Tensor:
        """Return the erased rows, of the shape and dtype of x (..., d)."""
        if self.proj_left.is_complex() or x.is_complex():
            centred = x if self.bias is None else x - self.bias
            return (x - (centred @ self.proj_right.mH) @ self.proj_left.mH).to(x.dtype)
        dtype = compute_dtype(x.dtype)
        mean = None if self.bias is None else self.bias.to(dtype)
        return project(x, self.proj_left.to(dtype), self.proj_right.to(dtype), mean)

    def to(self, device: torch.device | str) -> LeaceEraser:
        """Return the eraser on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return LeaceEraser(self.proj_left.to(device), self.proj_right.to(device), bias)


class LeaceFitter(Fitter[LeaceEraser]):
    """Streams what `LeaceEraser` needs.

    Args:
        x_dim: width of x.
        z_dim: width of z.
        method: "leace", or "orth" for the orthogonal projection.
        affine: keep the mean of x.
        constrain_cov_trace: accepted; the trace of the covariance never grows here, so there is nothing to constrain.
        device, dtype: of what is handed out; sums are kept in float64.
        shrinkage: shrink the covariance of x toward the identity by `optimal_linear_shrinkage`.
        svd_tol: drop singular values of the whitened cross-covariance below this, as that package does at 0.01; by
            default those that rounding cannot tell from zero, so that rare classes and many classes are erased too.

    Raises:
        ValueError: method is unknown or svd_tol not positive.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, theorem 4.3.

    >>> x, z = torch.randn(100, 4), torch.arange(100) % 2
    >>> eraser = LeaceFitter(4, 1).update(x, z).eraser
    >>> bool((eraser(x)[z == 0].mean(0) - eraser(x)[z == 1].mean(0)).abs().max() < 1e-5)
    True
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        method: ErasureMethod = "leace",
        *,
        affine: bool = True,
        constrain_cov_trace: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        shrinkage: bool = True,
        svd_tol: float | None = None,
    ) -> None:
        if method not in ("leace", "orth"):
            raise ValueError(f"method is {method!r}, expected 'leace' or 'orth'")
        super().__init__(x_dim, z_dim, device, dtype, shrinkage, svd_tol)
        self.method, self.affine = method, affine
        self.constrain_cov_trace = constrain_cov_trace

    def _fit(self) -> LeaceEraser:
        statistics = self._statistics
        freedom = statistics.degrees_of_freedom
        sums = statistics.sums_xx
        spread_x, spread_z = (
            (moment.diagonal().real.clamp_min(0) / freedom).sqrt() for moment in (sums, statistics.sums_zz)
        )
        left, right, unresolved = projection_factors(
            self._covariance(sums) if self.method == "leace" else None,
            statistics.sums_xz / freedom,
            spread_x,
            spread_z,
            statistics.moments.relative_error,
            self.svd_tol,
        )
        if unresolved:
            warn("not erased: " + "; ".join(unresolved))
        dtype = statistics.dtype if statistics.dtype.is_complex else compute_dtype(statistics.dtype)
        # Both factors lie by rank, as the kernels read them.
        left = left.mT.to(dtype, memory_format=torch.contiguous_format).mT
        mean = statistics.mean_x.to(dtype) if self.affine else None
        return LeaceEraser(left, right.to(dtype), mean)

    @property
    def sigma_xx_(self) -> Tensor | None:
        """Unnormalised covariance of x (x_dim, x_dim); None for the method "orth"."""
        return self._statistics.handed_out(self._statistics.sums_xx) if self.method == "leace" else None

    @property
    def sigma_xx(self) -> Tensor:
        """Covariance of x (x_dim, x_dim), shrunk unless that was declined.

        Raises:
            ValueError: there are fewer than two rows, or the method is "orth".
        """
        if self.method != "leace":
            raise ValueError("the covariance of x is not that of the method 'orth': use method='leace'")
        return self._statistics.handed_out(self._covariance(self._statistics.sums_xx))
