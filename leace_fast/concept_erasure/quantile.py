"""Distribution functions given by quantiles, and normalisation of each component to them."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import takes_arrays
from .groupby import groupby


@takes_arrays
def cdf(x: float | Tensor, q: Tensor) -> Tensor:
    """Return the share of the quantiles q (..., m), ascending, that lie at or below x (...).

    Raises:
        ValueError: there are fewer than three quantiles.

    >>> cdf(torch.tensor([0.0, 1.0, 2.5]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([0.0000, 0.2500, 0.5000])
    """
    points = torch.as_tensor(x, dtype=q.dtype, device=q.device)
    return torch.searchsorted(q.contiguous(), points.contiguous(), right=True, out_int32=True) / _size(q)


@takes_arrays
def icdf(p: Tensor, q: Tensor) -> Tensor:
    """Return the least of the quantiles q (..., m) at which `cdf` reaches p (...); the first one for p = 0.

    Raises:
        ValueError: there are fewer than three quantiles.

    >>> icdf(torch.tensor([0.0, 0.25, 0.6]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([1., 1., 3.])
    """
    # Just below p m, so that p = j / m gives the j-th quantile and not the next one.
    rank = torch.nextafter(p * _size(q), p.new_tensor(0.0)).long()
    return q.gather(-1, rank)


def _size(q: Tensor) -> int:
    if q.shape[-1] < 3:
        raise ValueError(f"got {q.shape[-1]} quantiles, expected at least 3 to read a distribution from")
    return q.shape[-1]


class QuantileNormalizer:
    """Moves each component of x from the distribution of one class to that of another.

    Args:
        x: rows along `dim`, floating.
        z: (n,) int64 labels 0..k-1, each with at least one row.
        num_bins: quantiles kept for each component and class.
        dim: the dimension of the rows.

    Raises:
        ValueError: a label between 0 and the largest has no rows.

    >>> x, z = torch.arange(10.0)[:, None], torch.arange(10) // 5
    >>> normalizer = QuantileNormalizer(x, z, num_bins=5)
    >>> normalizer.transport(x[:5], z[:5], 1).flatten().tolist()
    [5.0, 6.0, 7.0, 8.0, 9.0]
    """

    lut: Tensor
    dim: int

    @takes_arrays
    def __init__(self, x: Tensor, z: Tensor, num_bins: int = 256, dim: int = 0) -> None:
        grouped = groupby(x, z, dim=dim)
        if grouped.labels != list(range(len(grouped.labels))):
            raise ValueError(f"the labels with rows are {grouped.labels}, expected 0..k-1 without a gap")
        grid = torch.linspace(0, 1, num_bins, device=x.device, dtype=x.dtype)
        self.dim = dim
        self.lut = torch.stack([group.quantile(grid, dim=dim).movedim(0, -1) for group in grouped.groups])

    @property
    def num_bins(self) -> int:
        """Quantiles kept for each component and class."""
        return self.lut.shape[-1]

    @takes_arrays
    def cdf(self, z: int, x: Tensor) -> Tensor:
        """Return the distribution function of class z at x."""
        return cdf(x.movedim(self.dim, -1), self.lut[z]).movedim(-1, self.dim)

    def sample(self, z: int, n: int) -> Tensor:
        """Return n rows drawn from class z, each component on its own."""
        table = self.lut[z]
        uniform = torch.rand(*table.shape[:-1], n, device=table.device, dtype=table.dtype)
        return icdf(uniform, table).movedim(-1, self.dim)

    @takes_arrays
    def transport(self, x: Tensor, source_z: Tensor, target_z: int) -> Tensor:
        """Return x with each row moved from its class to class `target_z`."""
        target = self.lut[target_z]

        def move(label: int, rows: Tensor) -> Tensor:
            return icdf(cdf(rows.movedim(self.dim, -1), self.lut[label]), target).movedim(-1, self.dim)

        return groupby(x, source_z, dim=self.dim).map(move).coalesce()
