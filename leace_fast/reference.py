"""Every operation in plain torch: the truth that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PANEL = 256  # columns of one product: wide enough for BLAS, narrow enough to save half the work
FEW_CLASSES = 32  # a product with the one-hot labels is faster than scattered adds up to here


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
    """Return `tile' tile` (d, d) of rows (n, d), in their dtype; undefined outside the blocks of `panels(d)`.

    Column panels stop at the diagonal, which is half the work of the full product.
    """
    d = tile.shape[1]
    product = tile.new_empty(d, d)
    for rows, columns in panels(d):
        torch.mm(tile[:, rows].mT, tile[:, columns], out=product[rows, columns])
    return product


def panels(d: int) -> Iterator[tuple[slice, slice]]:
    """Yield the blocks (rows, columns) of a d x d matrix that cover its lower triangle."""
    for begin in range(0, d, PANEL):
        end = min(begin + PANEL, d)
        yield slice(begin, end), slice(0, end)


def add_class_sums(sums: Tensor, rows: Tensor, labels: Tensor, weight: Tensor | None) -> None:
    """Add the weighted sums of each class to `sums` (k, d): rows (n, d), labels (n,) in 0..k-1, weight (n,)."""
    if len(sums) > FEW_CLASSES:
        sums.index_add_(0, labels, rows if weight is None else rows * weight[:, None])
        return
    members = torch.zeros(len(sums), len(rows), dtype=rows.dtype, device=rows.device)
    if weight is None:
        members.scatter_(0, labels[None], 1.0)
    else:
        members.scatter_(0, labels[None], weight[None])
    sums.addmm_(members, rows)
