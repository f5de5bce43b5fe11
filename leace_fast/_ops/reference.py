"""Every operation in plain torch: the truth that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._warnings import warn

# Columns of one product: wide enough for BLAS; an eighth of the matrix does 56 % of the full work, at best 50.
LEAST_PANEL, PANELS = 64, 8
FACTOR_PANEL = 192  # columns of a Cholesky factor that LAPACK finds at a time
FEW_CLASSES = 32  # a product with the one-hot labels is faster than scattered adds up to here
SLICE_ELEMENTS = 1 << 16  # elements widened to float64 at a time: they stay in cache
TILE_ROWS = 1024  # centred and multiplied at a time, in one buffer: a fresh one for all rows costs more than the sums
# Squares of float32 numbers outside about 1e-15 .. 1e17 leave its range: such blocks are multiplied in float64.
TINY_SQUARE, HUGE_SQUARE = 1e-30, 1e34
LOST_SQUARE = 1e-290  # sums of squares below it have lost digits in float64 too
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
    if matrix.device.type != "cpu" or len(matrix) <= FACTOR_PANEL:
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


def all_finite(x: Tensor) -> bool:
    """Tell whether rows (n, d) hold neither NaN nor Inf."""
    # A sum is several times faster than a look at each number, but that of finite ones may overflow.
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def slices(x: Tensor) -> Iterator[slice]:
    """Yield slices of rows (n, d) that stay in the cache when they are widened to float64."""
    step = max(SLICE_ELEMENTS // x.shape[1], 1)
    for begin in range(0, len(x), step):
        yield slice(begin, min(begin + step, len(x)))


def class_sums(
    x: Tensor, labels: Tensor, num_classes: int, weight: Tensor | None, shift: Tensor, *, ordered: bool = False
) -> Tensor:
    """Return the sums of `w (x - shift)` by label (k, d) in float64: rows (n, d), labels (n,), weight (n,).

    With `ordered`, the order of additions is fixed on every device, at the price of a product with all labels.
    """
    sums = shift.new_zeros(num_classes, len(shift))
    buffer: Tensor | None = None
    for part in slices(x):
        size = part.stop - part.start
        buffer = shift.new_empty(size, len(shift)) if buffer is None else buffer
        rows = buffer[:size].copy_(x[part]).sub_(shift)  # exact for rows narrower than float64
        _add_by_label(sums, rows, labels[part], None if weight is None else weight[part], ordered)
    return sums


def _add_by_label(sums: Tensor, rows: Tensor, labels: Tensor, weight: Tensor | None, ordered: bool) -> None:
    scattered_in_order = rows.device.type == "cpu"
    if len(sums) > FEW_CLASSES and (scattered_in_order or not ordered):
        sums.index_add_(0, labels, rows if weight is None else rows * weight[:, None])
        return
    members = torch.zeros(len(sums), len(rows), dtype=rows.dtype, device=rows.device)
    if weight is None:
        members.scatter_(0, labels[None], 1.0)
    else:
        members.scatter_(0, labels[None], weight[None])
    sums.addmm_(members, rows)


def second_moment(x: Tensor, weight: Tensor | None, shift: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `sum w (x - shift)(x - shift)'` in three parts, which add up to it: a matrix (d, d), of which the lower
    triangle counts, and the factors (d, 2) and (2, d) of a matrix of rank two, all float64.

    Shapes: x (n, d), weight (n,) or None, shift (d,), and `total` (d,), the exact sum of `w (x - shift)`.
    """
    count = float(len(x)) if weight is None else float(weight.sum())
    offset = total / count  # of the rows' mean from the shift
    product, rest = _centred_product(x, _centre(x, shift + offset), weight)
    # The product was taken about a rounded mean: centre it exactly, then move it to the shift.
    return product, torch.stack([-rest / count, total], 1), torch.stack([rest, offset])


def _centre(x: Tensor, mean: Tensor) -> Tensor:
    """Return where to centre rows (n, d) before they are multiplied, in their compute dtype.

    Narrow rows keep their few digits, or squares of these are rounded the same way again and again: columns whose
    mean is within half a deviation of zero stay as they are, others move by a few digits of the deviation.
    """
    if x.dtype == torch.float64:
        return mean
    variance = x.float().var(0, correction=0).double()
    step = variance.sqrt().log2().floor().sub(3).exp2()
    coarse = torch.where(step > mean.abs() * 2.0**-24, (mean / step).round() * step, mean)
    return torch.where(4 * mean.square() <= variance, 0.0, coarse).float()


def _centred_product(x: Tensor, centre: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the lower second moment of `x - centre`, and the sums of the very rows that were multiplied, float64."""
    dtype, d = centre.dtype, len(centre)
    product = torch.zeros(d, d, dtype=torch.float64, device=x.device)
    partial = product if dtype == torch.float64 else torch.empty_like(product, dtype=dtype)
    squares, rest = product.new_zeros(d), product.new_zeros(d)
    buffer = x.new_empty(min(TILE_ROWS, len(x)), d, dtype=dtype)
    for begin in range(0, len(x), TILE_ROWS):
        part = x[begin : begin + TILE_ROWS]
        tile = torch.sub(part, centre, out=buffer[: len(part)])
        if weight is None:
            rest += tile.sum(0)
        else:
            own = weight[begin : begin + TILE_ROWS]
            rest += own @ tile.double()
            tile.mul_(own.sqrt().to(dtype)[:, None])
        if dtype == torch.float64:
            squares += tile.square().sum(0)
            add_lower_product(product, tile)
        else:  # sums of float32 products stay short
            partial.zero_()
            add_lower_product(partial, tile)
            product += partial
    if dtype == torch.float64:
        # A matrix product adds row after row; a sum adds in a tree, which keeps a digit more of each variance.
        product.diagonal().copy_(squares)
        _warn_of_tiny(squares, x, centre)
    elif _left_range(product.diagonal(), x, centre):
        return _centred_product(x.double(), centre.double(), weight)
    return product, rest


def _left_range(squares: Tensor, x: Tensor, centre: Tensor) -> bool:
    """Tell whether a column's squares overflowed or underflowed float32."""
    if not bool((squares < HUGE_SQUARE).all()):
        return True
    small = squares < TINY_SQUARE
    return bool(small.any()) and bool((x[:, small] != centre[small]).any())


def _warn_of_tiny(squares: Tensor, x: Tensor, centre: Tensor) -> None:
    """Warn of columns that vary, by so little that their squares are lost."""
    small = squares < LOST_SQUARE
    if bool(small.any()) and (columns := int((x[:, small] != centre[small]).any(0).sum())):
        warn(
            f"{columns} columns of x vary by less than 1e-145 about their mean: their squares leave the range of "
            "float64, and they may count as constant. Multiply x by a constant first"
        )
