"""Every operation in plain torch: the truth that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Columns of one product: wide enough for BLAS; an eighth of the matrix does 56 % of the full work, at best 50.
LEAST_PANEL, PANELS = 64, 8
FACTOR_PANEL = 192  # columns of a Cholesky factor that LAPACK finds at a time
FEW_CLASSES = 32  # a product with the one-hot labels is faster than scattered adds up to here
ROW_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that rows of a dtype are computed in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def project(x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None = None, index: Tensor | None = None) -> Tensor:
    """Return `x - ((x - mean) R') L'`, computed in the factors' dtype and rounded once to that of x.

    Shapes: x (..., d), left (d, k), right (k, d), mean (d,) or None. With `index`, of the leading shape of x, the
    factors are stacked and each row meets the eraser of its number, or none at -1; a number without an eraser gives
    a row of NaN.
    """
    if index is None:
        rows = x.to(left.dtype)
        centred = rows if mean is None else rows - mean
        return (rows - (centred @ right.mT) @ left.mT).to(x.dtype)
    index = index[..., None]
    erased = torch.where((index >= -1) & (index < len(left)), x, torch.nan)
    for number in range(len(left)):  # every eraser on every row: no shape depends on what `index` holds
        one = project(x, left[number], right[number], None if mean is None else mean[number])
        erased = torch.where(index == number, one, erased)
    return erased


def rms_norm(rows: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
    """Return `rows / sqrt(mean(rows^2) + eps) * (weight + weight_offset)` in the dtype of rows (..., d)."""
    normed = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * (weight.to(rows.dtype) + weight_offset)


def layer_norm(rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return `(rows - mean) / sqrt(variance + eps) * weight + bias` in the dtype of rows (..., d)."""
    centred = rows - rows.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    scaled = normed if weight is None else normed * weight.to(rows.dtype)
    return scaled if bias is None else scaled + bias.to(rows.dtype)


def add_rms_norm_project(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    eps: float,
    left: Tensor,
    right: Tensor,
    mean: Tensor | None = None,
    index: Tensor | None = None,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the erased `rms_norm` of `x + residual`, rounded once, and that sum in the dtype of x."""
    summed = x if residual is None else x + residual
    normed = rms_norm(summed.to(left.dtype), weight, eps, weight_offset)
    return project(normed, left, right, mean, index).to(x.dtype), summed


def add_layer_norm_project(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    left: Tensor,
    right: Tensor,
    mean: Tensor | None = None,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the erased `layer_norm` of `x + residual`, rounded once, and that sum in the dtype of x."""
    summed = x if residual is None else x + residual
    normed = layer_norm(summed.to(left.dtype), weight, bias, eps)
    return project(normed, left, right, mean, index).to(x.dtype), summed


def add_lower_product(product: Tensor, tile: Tensor) -> None:
    """Add `tile' tile` of rows (n, d) to `product` (d, d), of the same dtype, in the blocks of `panels(d)` alone.

    Column panels stop at the diagonal, which is half the work of the full product.
    """
    for rows, columns in panels(tile.shape[1]):
        product[rows, columns].addmm_(tile[:, rows].mT, tile[:, columns])


def panels(d: int) -> Iterator[tuple[slice, slice]]:
    """Yield the blocks (rows, columns) of a d x d matrix that cover its lower triangle."""
    panel = max(d // PANELS, LEAST_PANEL)
    for begin in range(0, d, panel):
        end = min(begin + panel, d)
        yield slice(begin, end), slice(0, end)


def cholesky(matrix: Tensor) -> tuple[Tensor, bool]:
    """Return the lower Cholesky factor of a matrix (d, d), of which the lower triangle counts, and whether it failed.

    By panels that lie by rows: on the CPU the matrix products outrun LAPACK's factorisation of the whole.
    """
    if matrix.device.type != "cpu":
        factor, failed = torch.linalg.cholesky_ex(matrix)
        return factor, bool(failed)
    factor = matrix.clone(memory_format=torch.contiguous_format)
    for begin in range(0, len(factor), FACTOR_PANEL):
        panel = slice(begin, begin + FACTOR_PANEL)
        above, below = factor[panel, :begin], factor[begin + FACTOR_PANEL :]
        factor[panel, panel].addmm_(above, above.mT, alpha=-1)
        corner, failed = torch.linalg.cholesky_ex(factor[panel, panel])
        if failed:
            return factor, True
        factor[panel, panel] = corner
        below[:, panel].addmm_(below[:, :begin], above.mT, alpha=-1)
        below[:, panel] = torch.linalg.solve_triangular(corner.mT, below[:, panel], upper=True, left=False)
    return factor.tril_(), False


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
