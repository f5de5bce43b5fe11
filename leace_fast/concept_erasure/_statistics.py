"""The statistics of (x, z) that the fitters stream, real or complex, from `Moments`.

Complex rows go in as their real and imaginary parts side by side; the Hermitian
moments are read off the real ones, which are twice as wide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..statistics import Moments


class Statistics:
    """Means and covariances of x (n, x_dim) and z (n, z_dim), in double precision, as copies.

    Args:
        x_dim: width of x.
        z_dim: width of z.
        device: where the statistics live.
        dtype: floating or complex; rows are converted to it first if it has 32 bits or more.
    """

    def __init__(
        self, x_dim: int, z_dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.x_dim, self.z_dim = x_dim, z_dim
        self.dtype = dtype or torch.get_default_dtype()
        parts = 2 if self.dtype.is_complex else 1
        self.moments = Moments(
            x_dim * parts, target_dim=z_dim * parts, device=torch.get_default_device() if device is None else device
        )

    def update(self, x: Tensor, z: Tensor) -> None:
        """Add rows x (..., x_dim) with z (...) or (..., z_dim).

        Raises:
            ValueError: a shape does not fit, or z is one column of integers other than 0 and 1.
        """
        if x.shape[-1:] != (self.x_dim,):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (..., {self.x_dim})")
        rows = x.reshape(-1, self.x_dim)
        if z.numel() != len(rows) * self.z_dim:
            raise ValueError(f"z has shape {tuple(z.shape)}, expected {self.z_dim} for each of {len(rows)} rows")
        targets = z.reshape(len(rows), self.z_dim)
        if self.z_dim == 1:
            _check_no_classes(targets)
        self.moments.update(as_real(rows, self.dtype), as_real(targets, self.dtype))

    @property
    def n(self) -> Tensor:
        """Rows so far, int64 ()."""
        return torch.tensor(self.moments.count, device=self.moments.device)

    @property
    def degrees_of_freedom(self) -> int:
        """Rows so far less one.

        Raises:
            ValueError: there are fewer than two rows.
        """
        if self.moments.count < 2:
            raise ValueError(f"a covariance needs at least two rows, there are {self.moments.count}: call update first")
        return self.moments.count - 1

    @property
    def mean_x(self) -> Tensor:
        """Mean of x (x_dim,) in double precision, zeros before the first row."""
        return as_complex(self.moments.mean, self.dtype) if self.moments.count else self._zeros(self.x_dim)

    @property
    def mean_z(self) -> Tensor:
        """Mean of z (z_dim,) in double precision, zeros before the first row."""
        return as_complex(self.moments.target_mean, self.dtype) if self.moments.count else self._zeros(self.z_dim)

    @property
    def sums_xx(self) -> Tensor:
        """Sum of `(x - mean)^H (x - mean)` (x_dim, x_dim) in double precision."""
        return self._sums("covariance", self.x_dim, self.x_dim)

    @property
    def sums_xz(self) -> Tensor:
        """Sum of `(x - mean)^H (z - mean)` (x_dim, z_dim) in double precision."""
        return self._sums("cross_covariance", self.x_dim, self.z_dim)

    @property
    def sums_zz(self) -> Tensor:
        """Sum of `(z - mean)^H (z - mean)` (z_dim, z_dim) in double precision."""
        return self._sums("target_covariance", self.z_dim, self.z_dim)

    def handed_out(self, values: Tensor) -> Tensor:
        """Return some statistics in the dtype that was asked for."""
        return values.to(self.dtype)

    def _zeros(self, *shape: int) -> Tensor:
        double = torch.complex128 if self.dtype.is_complex else torch.float64
        return torch.zeros(shape, dtype=double, device=self.moments.device)

    def _sums(self, name: str, rows: int, columns: int) -> Tensor:
        self.moments.check_finite()
        if not self.moments.count:
            return self._zeros(rows, columns)
        return hermitian(getattr(self.moments, name), self.dtype) * self.moments.count


def as_real(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows (..., d) in a dtype; if that is complex, their real and imaginary parts (..., 2 d)."""
    # Rows are never rounded to 16 bits: what is kept is float64 whatever is handed out.
    if dtype.itemsize > 2 or not x.is_floating_point():
        x = x.to(dtype)
    return torch.cat([x.real, x.imag], -1) if dtype.is_complex else x


def as_complex(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return vectors (..., d) for a complex dtype from their parts (..., 2 d), in double precision."""
    return torch.complex(*values.chunk(2, -1)) if dtype.is_complex else values


def hermitian(covariance: Tensor, dtype: torch.dtype) -> Tensor:
    """Return, for a complex dtype, the mean of `x^H z` (..., d, k) from the covariance of the parts (..., 2 d, 2 k)."""
    if not dtype.is_complex:
        return covariance
    (rr, ri), (ir, ii) = (half.chunk(2, -1) for half in covariance.chunk(2, -2))
    return torch.complex(rr + ii, ri - ir)


def _check_no_classes(targets: Tensor) -> None:
    """Raise ValueError for one column of integers that can only be the labels of several classes."""
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        return
    if targets.numel() and not bool(((targets == 0) | (targets == 1)).all()):
        raise ValueError(
            f"z is one column of integers from {int(targets.min())} to {int(targets.max())}, which would be taken for "
            "numbers on a line: pass torch.nn.functional.one_hot(z) for classes, or z.double() if they are numbers"
        )
