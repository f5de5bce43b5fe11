"""Sums over a block of rows, by the fastest means at hand: compiled kernels for narrow rows on the CPU, else torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .._ops import load_extension, reference
from ._at_once import Step

# Of the instruction set in use, in `load_extension().instruction_sets`; at 0, the baseline, all is plain torch.
LEVEL = len(load_extension().instruction_sets) - 1 if load_extension().present else 0
# Numbers of a tensor that torch's own threads divide among them.
TORCH_DIVIDES = 2**15
# Sums of squares, and their share in those about the shift, well inside of what the kernels take.
LEAST_SQUARE, MOST_SQUARE, LEAST_SHARE = 1e-28, 1e32, 1e-14


class Narrow(NamedTuple):
    """Rows (n, d) whose products a compiled kernel is still to add to a second moment."""

    x: Tensor
    weight: Tensor | None
    shift: Tensor  # (d,)
    total: Tensor  # (d,): of w (x - shift)
    squares: Tensor  # (d,): of w (x - shift)^2

    def steps(self, second: Tensor) -> list[Step]:
        """Return what adds the products in place; it returns False, and adds nothing, where squares leave float32."""
        add = torch.ops.leace_fast.add_second_moment.default._op  # the function that is written in C
        return [partial(add, second, self.x, self.weight, self.shift, self.total, self.squares, LEVEL)]

    def add_to(self, second: Tensor) -> Tensor:
        """Add the products in place, by either means, and return the second moment."""
        if not self.steps(second)[0]():
            rows = self.x.double()
            Wide(*reference.second_moment(rows, self.weight, self.shift, self.total)).add_to(second)
        return second

    def new(self, second: Tensor) -> None:
        """Return None: there is no second moment that could take the place of the one before."""


class Wide(NamedTuple):
    """Products of rows that are to be added to a second moment, and a term of rank two."""

    product: Tensor  # (d, d)
    columns: Tensor  # (d, 2)
    rows: Tensor  # (2, d)

    def steps(self, second: Tensor) -> list[Step]:
        """Return what adds them in place."""
        return [partial(second.add_, self.product), partial(second.addmm_, self.columns, self.rows)]

    def add_to(self, second: Tensor) -> Tensor:
        """Add them in place, and return the second moment."""
        return second.add_(self.product).addmm_(self.columns, self.rows)

    def new(self, second: Tensor) -> Tensor:
        """Return the second moment with them, in the memory of the product."""
        return self.product.add_(second).addmm_(self.columns, self.rows)


Products = Narrow | Wide


def block_sums(groups: int, x: Tensor, labels: Tensor, weight: Tensor | None, shift: Tensor) -> tuple[Tensor, Products]:
    """Return the sums of rows by group (g, d) float64, `sum w (x - shift)`, and the products for the second moment.

    Rows of float64 are summed in float64. The products of all others are exact or rounded to float32, and so are
    sums of up to 1024 of these; sums of rows are float64 always. The bits depend on the rows alone, and on `LEVEL`.

    Args:
        groups: their number g.
        x: (n, d) finite rows, n >= 1.
        labels: (n,) int64, the groups.
        weight: (n,) float64 > 0, or None for ones.
        shift: (d,) float64.

    Source: Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115, for moving centres.

    >>> import torch
    >>> x, zero = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(1).double()
    >>> sums, products = block_sums(2, x, torch.tensor([0, 1, 1]), None, zero)
    >>> sums.tolist(), products.add_to(torch.zeros(1, 1).double()).tolist()
    ([[1.0], [5.0]], [[14.0]])
    """
    if not has_kernel(x):
        added = reference.class_sums(x, labels, groups, weight, shift)
        return added, Wide(*reference.second_moment(x, weight, shift, added.sum(0)))
    x = x if x.stride(1) == 1 else x.contiguous()
    added = shift.new_zeros(groups, len(shift))
    total, squares = shift.new_zeros(2, len(shift))
    torch.ops.leace_fast.add_class_sums.default(added, total, squares, x, labels, weight, shift, LEVEL)
    return added, Narrow(x, weight, shift, total, squares)


def surely_fit(waiting: Sequence[Products]) -> bool:
    """Tell whether it is certain, by the sums of the blocks, that no kernel will refuse the products of any.

    The kernels look at squares about a centre of their own, which lies within a deviation of the mean.
    """
    narrow = [products for products in waiting if isinstance(products, Narrow)]
    if not narrow:
        return True
    total = numpy.stack([products.total.numpy() for products in narrow])
    squares = numpy.stack([products.squares.numpy() for products in narrow])
    sizes = numpy.array([_size(products) for products in narrow])[:, :, None]  # (blocks, 3, 1)
    rest = squares - total * total / sizes[:, 0]
    least = numpy.maximum(LEAST_SHARE * squares, LEAST_SQUARE * sizes[:, 2])
    inside = (rest > least) & (squares < MOST_SQUARE * sizes[:, 1])
    return bool((inside | (squares == 0)).all())


def _size(products: Narrow) -> tuple[float, float, float]:
    """Return the sum of the weights, and the least and the most that the kernel may divide them by."""
    if products.weight is None:
        return float(len(products.x)), 1.0, 1.0
    most = float(products.weight.max())
    return float(products.weight.sum()), most / 4, most


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


def copying(to: Tensor, part: Tensor) -> Step:
    """Return what copies a tensor into another; many rows by a kernel, as torch's threads would wait for each other."""
    many = part.ndim == 2 and part.numel() >= TORCH_DIVIDES
    if many and has_kernel(part) and part.stride(1) == 1 and to.dtype == part.dtype:
        return partial(torch.ops.leace_fast.copy_rows.default._op, to, part)
    return partial(to.copy_, part)


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
