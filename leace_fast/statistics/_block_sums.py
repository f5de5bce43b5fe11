"""Sums over a block of rows, by the fastest means at hand: compiled kernels for narrow rows on the CPU, else torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import load_extension, reference

# Of the instruction set in use, in `load_extension().instruction_sets`; at 0, the baseline, all is plain torch.
LEVEL = len(load_extension().instruction_sets) - 1 if load_extension().present else 0


def add_block(sums: Tensor, second: Tensor, x: Tensor, labels: Tensor, weight: Tensor | None, shift: Tensor) -> None:
    """Add rows to the sums of their groups and to the second moment, both about a shift.

    Rows of float64 are summed in float64. The products of all others are exact or rounded to float32, and so are
    sums of up to 1024 of these; sums of rows are float64 always. The bits depend on the rows alone, and on `LEVEL`.

    Args:
        sums: (g, d) float64, changed: `sum w (x - shift)` by group.
        second: (d, d) float64, changed in its lower triangle: `sum w (x - shift)(x - shift)'`.
        x: (n, d) finite rows, n >= 1.
        labels: (n,) int64, the groups.
        weight: (n,) float64 > 0, or None for ones.
        shift: (d,) float64.

    Source: Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115, for moving centres.

    >>> import torch
    >>> sums, second = torch.zeros(2, 1).double(), torch.zeros(1, 1).double()
    >>> add_block(sums, second, torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 1]), None, sums[0].clone())
    >>> sums.tolist(), second.tolist()
    ([[1.0], [5.0]], [[14.0]])
    """
    if not has_kernel(x):
        added = reference.class_sums(x, labels, len(sums), weight, shift)
        reference.add_second_moment(second, x, weight, shift, added.sum(0))
        sums += added
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    added = torch.zeros_like(sums)
    total, squares = shift.new_zeros(2, len(shift))
    kernels = torch.ops.leace_fast
    kernels.add_class_sums.default(added, total, squares, x, labels, weight, shift, LEVEL)
    if not kernels.add_second_moment.default(second, x, weight, shift, total, squares, LEVEL):
        reference.add_second_moment(second, x.double(), weight, shift, total)
    sums += added


def cell_sums(x: Tensor, cell: Tensor, count: int, weight: Tensor | None, shift: Tensor) -> Tensor:
    """Return the sums of `w (x - shift)` (count, d) float64 of rows x (n, d) by cell (n,) int64, in a fixed order."""
    if not has_kernel(x):
        return reference.class_sums(x, cell, count, weight, shift, ordered=True)
    x = x if x.stride(1) == 1 else x.contiguous()
    added = shift.new_zeros(count, len(shift))
    total, squares = shift.new_zeros(2, len(shift))
    torch.ops.leace_fast.add_class_sums.default(added, total, squares, x, cell, weight, shift, LEVEL)
    return added


def all_finite(x: Tensor) -> bool:
    """Tell whether rows (n, d) hold neither NaN nor Inf."""
    if has_kernel(x) and x.stride(1) == 1:
        return torch.ops.leace_fast.all_finite.default(x, LEVEL)
    return reference.all_finite(x)


def copy_rows(to: Tensor, x: Tensor) -> None:
    """Copy rows x (n, d) into contiguous ones of the same dtype; torch's own copy waits for threads at each batch."""
    if has_kernel(x) and x.stride(1) == 1:
        torch.ops.leace_fast.copy_rows.default(to, x)
    else:
        to.copy_(x)


def relative_error(x: Tensor) -> float:
    """Return a bound on the rounding error of the correlation matrix of some rows, by how they are multiplied.

    Plain torch adds products in longer runs, in which equal rows are rounded the same way again and again.
    """
    if x.dtype == torch.float64:
        return x.shape[-1] * 2.0**-52
    return 2e-6 if has_kernel(x) else 2e-5


def has_kernel(x: Tensor) -> bool:
    """Tell whether there is a compiled kernel for some rows."""
    return LEVEL > 0 and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
