"""Every operation in plain torch: the truth that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 256  # columns of one product: wide enough for BLAS, narrow enough to save half the work


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that rows of a dtype are computed in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def project(x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None) -> Tensor:
    """Return `x - ((x - mean) R') L'`, computed in the factors' dtype and rounded once to that of x.

    Shapes: x (..., d), left (d, k), right (k, d), mean (d,) or None.
    """
    rows = x.to(left.dtype)
    centred = rows if mean is None else rows - mean
    return (rows - (centred @ right.mT) @ left.mT).to(x.dtype)


def lower_product(tile: Tensor) -> Tensor:
    """Return `tile' tile` (d, d) of rows (n, d), in their dtype; above the diagonal it is unspecified but finite.

    Column panels stop at the diagonal, which is half the work of the full product.
    """
    d = tile.shape[1]
    product = tile.new_zeros(d, d)
    for begin in range(0, d, PANEL):
        end = min(begin + PANEL, d)
        torch.mm(tile[:, begin:end].mT, tile[:, :end], out=product[begin:end, :end])
    return product


def class_sums(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the sums of the rows of each class (k, d) in float64: rows (n, d), labels (n,) in 0..k-1."""
    return torch.zeros(num_classes, x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, labels, x.double())
