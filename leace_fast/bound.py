"""Operations with their factors bound, and the shortest way to the kernel where a call is all that counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import ops

# Of a mode of torch, such as those that trace or fake tensors, and of `torch.jit.trace`.
_count_modes, _trace = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state


class Bound:
    """`project(x, left, right, mean)`, for x on the device of the factors and of a dtype computed in theirs.

    A few rows on the CPU go straight to the kernel, at half the cost of a call of the operator: the memory is all that
    the kernel needs to know, where no gradient, compiler, transform or mode watches the call. The bits are the same.

    Args:
        left: (d, k), the transpose of a contiguous tensor.
        right: (k, d), contiguous.
        mean: (d,), contiguous, or None for zero.

    >>> erase = Bound(torch.eye(2)[:1].mT, torch.eye(2)[:1], None)
    >>> erase(torch.ones(2))
    tensor([0., 1.])
    """

    __slots__ = ("factors", "kernel")

    def __init__(self, left: Tensor, right: Tensor, mean: Tensor | None) -> None:
        self.factors = left, right, mean
        self.kernel = _direct(self.factors)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.factors  # a copy has memory of its own

    def __call__(self, x: Tensor) -> Tensor:
        """Return the erased rows x (..., d); what is raised is that of `project`."""
        if self.kernel is not None and _unwatched() and not (torch.is_grad_enabled() and x.requires_grad):
            y = self.kernel(x)
            if y is not None:
                return y
        return ops.project(x, *self.factors)


class BoundNorm:
    """The erased norm of x: `add_layer_norm_project` or `add_rms_norm_project` without a residual, as in `Bound`.

    Args:
        factors: left, right and mean, as in `Bound`.
        centred: whether it is a layer norm, else an RMS norm.
        eps: added to the variance or mean square.
        weight_offset: added to the weight, of an RMS norm alone.

    >>> norm = BoundNorm((torch.eye(2)[:1].mT, torch.eye(2)[:1], None), False, 0.0)
    >>> norm(torch.tensor([3.0, 1.0]), torch.ones(2))
    tensor([0.0000, 0.4472])
    """

    __slots__ = ("factors", "centred", "eps", "weight_offset", "kernel")

    def __init__(
        self, factors: tuple[Tensor, Tensor, Tensor | None], centred: bool, eps: float, weight_offset: float = 0.0
    ) -> None:
        self.factors, self.centred, self.eps, self.weight_offset = factors, centred, eps, weight_offset
        self.kernel = _direct(factors, (centred, eps, weight_offset))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.factors, self.centred, self.eps, self.weight_offset)

    def __call__(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Return the erased norm of the rows x (..., d); what is raised is that of the operator."""
        watched = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (x, weight, bias))
        if self.kernel is not None and not watched and _unwatched():
            y = self.kernel(x, weight, bias)
            if y is not None:
                return y
        if self.centred:
            return ops.add_layer_norm_project(x, None, weight, bias, self.eps, *self.factors)[0]
        offset = self.weight_offset
        return ops.add_rms_norm_project(x, None, weight, self.eps, *self.factors, weight_offset=offset)[0]


def _direct(factors: tuple[Tensor, Tensor, Tensor | None], norm: tuple[bool, float, float] | None = None) -> Any:
    """Return the kernel on tensors, or None: it is not built, or the factors do not lie as it reads them."""
    if not ops.EXTENSION.present or torch.compiler.is_compiling():
        return None
    left, right, mean = factors
    return ops.EXTENSION.module.direct(left.mT, right, mean, norm)


def _unwatched() -> bool:
    """Return whether neither a compiler nor a mode nor a trace follows what is called."""
    return not is_dynamo_compiling() and not _count_modes() and _trace() is None
