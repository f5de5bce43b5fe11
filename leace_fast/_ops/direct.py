"""Operations with their factors bound, and the shortest way to the kernel where a call is all that counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.compiler import is_dynamo_compiling

from . import operators as ops

# By name, and asked one by one where they count: a call of a function of ours costs as much as two of these.
_count_modes, _needs_gradients = torch._C._len_torch_dispatch_stack, torch.is_grad_enabled
_is_profiled = torch.autograd._profiler_enabled  # type: ignore[attr-defined]


class Bound:
    """`project(x, left, right, mean)`, for x on the device of the factors and of a dtype computed in theirs.

    Dense rows on the CPU go straight to the kernel, at half the cost of a call of the operator: the memory is all that
    the kernel needs to know, where no gradient or tangent, compiler, transform, mode or profiler watches the call. The
    bits are the same.

    Args:
        left: (d, k), the transpose of a contiguous tensor.
        right: (k, d), contiguous.
        mean: (d,), contiguous, or None for zero.

    >>> erase = Bound(torch.eye(2)[:1].mT, torch.eye(2)[:1], None)
    >>> erase(torch.ones(2))
    tensor([0., 1.])
    """

    __slots__ = ("factors", "packed", "kernel")

    def __init__(self, left: Tensor, right: Tensor, mean: Tensor | None) -> None:
        self.factors = left, right, mean
        self.packed = None if torch.compiler.is_compiling() else ops.pack(left, right)
        self.kernel = _direct(self.factors, packed=self.packed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.factors  # a copy has memory of its own

    def __call__(self, x: Tensor) -> Tensor:
        """Return the erased rows x (..., d); what is raised is that of `project`."""
        if (
            not is_dynamo_compiling()
            and not _count_modes()
            and not _is_profiled()
            and forward_ad._current_level < 0
            and not (_needs_gradients() and x.requires_grad)
        ):
            y = self.kernel(x)
            if y is not None:
                return y
        return ops.project(x, *self.factors, packed=self.packed)

    def apply_(self, x: Tensor) -> Tensor:
        """Erase rows x (..., d) in place and return x; what is raised is that of `project_`."""
        if (
            not is_dynamo_compiling()
            and not _count_modes()
            and not _is_profiled()
            and forward_ad._current_level < 0
            and not (_needs_gradients() and x.requires_grad)
            and self.kernel(x, True) is not None
        ):
            if not x.is_inference():
                increment_version(x)
            return x
        return ops.project_(x, *self.factors, packed=self.packed)


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
        if (
            not is_dynamo_compiling()
            and not _count_modes()
            and not _is_profiled()
            and forward_ad._current_level < 0
            and not (_needs_gradients() and any(p is not None and p.requires_grad for p in (x, weight, bias)))
        ):
            y = self.kernel(x, weight, bias)
            if y is not None:
                return y
        if self.centred:
            return ops.add_layer_norm_project(x, None, weight, bias, self.eps, *self.factors)[0]
        offset = self.weight_offset
        return ops.add_rms_norm_project(x, None, weight, self.eps, *self.factors, weight_offset=offset)[0]


def _direct(
    factors: tuple[Tensor, Tensor, Tensor | None],
    norm: tuple[bool, float, float] | None = None,
    packed: Tensor | None = None,
) -> Any:
    """Return the kernel on tensors, or what takes none: it is not built, or cannot read the factors as they lie."""
    if not ops.EXTENSION.present or torch.compiler.is_compiling():
        return _no_kernel
    left, right, mean = factors
    return ops.EXTENSION.module.direct(left.mT, right, mean, norm, packed) or _no_kernel


def _no_kernel(*arguments: object) -> None:
    return None
