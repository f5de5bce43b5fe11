"""`project` with its factors bound, and the shortest way to the kernel where a call is all that counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .reference import ROW_DTYPES

# Up to here one thread does; more work goes through the dispatcher, where threads divide it.
WORK_OF_ONE_THREAD = 1 << 18


class Bound:
    """`project(x, left, right, mean)` for x of one dtype, on the device of the factors.

    A few rows on the CPU go straight to the kernel, at half the cost of a call of the operator: the memory is all that
    the kernel needs to know, where no gradient, compiler, transform or mode watches the call. The bits are the same.

    Args:
        dtype: of x.
        left: (d, k), the transpose of a contiguous tensor.
        right: (k, d), contiguous.
        mean: (d,), contiguous, or None for zero.

    >>> import torch
    >>> erase = Bound(torch.float32, torch.eye(2)[:1].mT, torch.eye(2)[:1], None)
    >>> erase(torch.ones(2))
    tensor([0., 1.])
    """

    __slots__ = ("dtype", "factors", "kernel", "dim", "limit")

    def __init__(self, dtype: torch.dtype, left: Tensor, right: Tensor, mean: Tensor | None) -> None:
        self.dtype, self.factors = dtype, (left, right, mean)
        self.dim, rank = left.shape
        self.limit = WORK_OF_ONE_THREAD // (2 * rank + 4)
        self.kernel: Any = None
        dense = left.mT.is_contiguous() and right.is_contiguous() and (mean is None or mean.is_contiguous())
        fits = dense and left.device.type == "cpu" and self.dim and dtype in ROW_DTYPES
        if fits and ops.EXTENSION.present and not torch.compiler.is_compiling():
            module = ops.EXTENSION.module
            addresses = (left.data_ptr(), right.data_ptr(), 0 if mean is None else mean.data_ptr())
            name = str(dtype).removeprefix("torch.")
            self.kernel = module.Projector(getattr(module.Dtype, name), *addresses, self.dim, rank)

    def __reduce__(self) -> tuple[type[Bound], tuple[object, ...]]:
        return Bound, (self.dtype, *self.factors)  # a copy has memory, and so addresses, of its own

    def __call__(self, x: Tensor) -> Tensor:
        """Return the erased rows x (..., d); what is raised is that of `project`."""
        if (
            not torch.compiler.is_compiling()
            and self.kernel is not None
            and type(x) is Tensor
            and x.numel() <= self.limit
            and x.is_contiguous()
            and x.dtype == self.dtype
            and x.is_cpu
            and x.dim() > 0
            and x.shape[-1] == self.dim
            and not (x.requires_grad and torch.is_grad_enabled())
            and not x.is_neg()
            and not torch._C._are_functorch_transforms_active()
            and not torch._C._len_torch_dispatch_stack()
            and torch._C._get_tracing_state() is None
        ):
            y = torch.empty_like(x)
            self.kernel(x.data_ptr(), y.data_ptr(), x.numel())
            return y
        return ops.project(x, *self.factors)
