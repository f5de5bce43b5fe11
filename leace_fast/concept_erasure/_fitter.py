"""What the fitters of linear erasers share: statistics of (x, z), streamed, and an eraser made when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from .._ops import takes_arrays
from ._statistics import Statistics
from .shrinkage import optimal_linear_shrinkage

if TYPE_CHECKING:
    from typing_extensions import Self

E = TypeVar("E")


class Fitter(Generic[E]):
    """Streams rows x with concepts z; `eraser` is that of the rows so far."""

    @classmethod
    @takes_arrays
    def fit(cls, x: Tensor, z: Tensor, **kwargs: Any) -> Self:
        """Return a fitter that has seen rows x (n, d) with concepts z (n,) or (n, k)."""
        z_dim = z.shape[1:].numel()
        return cls(x.shape[-1], z_dim, **{"device": x.device, "dtype": x.dtype, **kwargs}).update(x, z)

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        shrinkage: bool = False,
        svd_tol: float | None = None,
    ) -> None:
        if svd_tol is not None and not svd_tol > 0:
            raise ValueError(f"svd_tol is {svd_tol}, expected a positive number, or None for the rounding error")
        self.x_dim, self.z_dim, self.shrinkage, self.svd_tol = x_dim, z_dim, shrinkage, svd_tol
        self._statistics = Statistics(x_dim, z_dim, device, dtype)
        self._eraser: E | None = None

    @takes_arrays
    def update(self, x: Tensor, z: Tensor) -> Self:
        """Add rows x (..., x_dim) with z (...) or (..., z_dim), and return self."""
        self._eraser = None  # first: an eraser of fewer rows must not outlive an update that is interrupted
        self._statistics.update(x, z)
        return self

    @property
    def eraser(self) -> E:
        """The eraser of the rows so far; it does not change with later ones.

        Raises:
            ValueError: there are fewer than two rows, or rows that are not finite.

        Warns:
            UserWarning: a column of z is less correlated with x than rounding can tell.
        """
        if self._eraser is None:
            self._eraser = self._fit()
        return self._eraser

    def _fit(self) -> E:
        raise NotImplementedError

    def _covariance(self, sums: Tensor) -> Tensor:
        """Return the covariance of some unnormalised one, shrunk if that was asked for."""
        freedom = self._statistics.degrees_of_freedom
        if self.shrinkage:
            return optimal_linear_shrinkage(sums / (freedom + 1), freedom + 1)
        return sums / freedom

    @property
    def n(self) -> Tensor:
        """Rows so far, int64 ()."""
        return self._statistics.n

    @property
    def mean_x(self) -> Tensor:
        """Mean of x (x_dim,)."""
        return self._statistics.handed_out(self._statistics.mean_x)

    @property
    def mean_z(self) -> Tensor:
        """Mean of z (z_dim,)."""
        return self._statistics.handed_out(self._statistics.mean_z)

    @property
    def sigma_xz_(self) -> Tensor:
        """Unnormalised cross-covariance (x_dim, z_dim)."""
        return self._statistics.handed_out(self._statistics.sums_xz)

    @property
    def sigma_xz(self) -> Tensor:
        """Cross-covariance (x_dim, z_dim).

        Raises:
            ValueError: there are fewer than two rows.
        """
        return self._statistics.handed_out(self._statistics.sums_xz / self._statistics.degrees_of_freedom)
