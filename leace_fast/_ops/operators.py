"""Every operation of the apply: sent to its kernel, or to plain torch.

Kernels check their arguments themselves; what they refuse is looked at here once more, to say what does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from .arguments import check_apart, check_norm, check_project
from .devices import check_dense
from .extension import load_extension

EXTENSION = load_extension()
MOST_GPU_RANKS = 64  # MAX_RANK of csrc/cuda/apply.h
_BelowAutograd = torch._C._AutoDispatchBelowAutograd

if EXTENSION.present:
    from . import autograd as _autograd  # noqa: F401  (registers fake kernels and gradients


def project(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    mean: Tensor | None = None,
    index: Tensor | None = None,
    *,
    packed: Tensor | None = None,
) -> Tensor:
    """Return `x - ((x - mean) R') L'`, computed in the factors' dtype and rounded once to that of x.

    Differentiable in x; the factors are constants. A row's result depends on that row and its eraser alone.

    Args:
        x: (..., d) floating.
        left: (d, k), float64 for float64 x and float32 otherwise, on the device of x.
        right: (k, d), likewise.
        mean: (d,), likewise, or None for zero.
        index: int64 of the leading shape of x, which eraser a row meets, or -1 for none: that row comes out as it
            is. The factors are then stacked: left (E, d, k), right (E, k, d), mean (E, d).
        packed: what `pack` made of these factors, or None.

    Raises:
        TypeError: x is not floating, the factors are not of the compute dtype, or index is not int64.
        ValueError: a shape does not fit.
        IndexError: index names an eraser that is not there; nothing has been written. On CUDA, where looking would
            wait for the device, those rows come out as NaN and `check_index` raises.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 1.

    >>> import torch
    >>> left = torch.tensor([[1.0], [0.0]])
    >>> x = torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    >>> project(x, left, left.mT, torch.tensor([1.0, 0.0]))
    tensor([[1., 4.],
            [1., 6.]])
    >>> project(x, left[None], left.mT[None], index=torch.tensor([-1, 0]))
    tensor([[3., 4.],
            [0., 6.]])
    """
    if _has_kernel(x, left):
        try:
            return _called(torch.ops.leace_fast.project.default, (x, left, right, mean, index, packed), _watched(x))
        except RuntimeError:
            check_project(x, left, right, mean, index)
            raise
    check_project(x, left, right, mean, index)
    return reference.project(x, left, right, mean, index)


def project_(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    mean: Tensor | None = None,
    index: Tensor | None = None,
    *,
    packed: Tensor | None = None,
) -> Tensor:
    """Do what `project` does, in place; return x, whose memory may be strided but not overlap.

    Raises:
        TypeError, IndexError: as `project`.
        ValueError: a shape does not fit, x is a leaf that requires a gradient, or rows of x share memory.

    >>> import torch
    >>> left, x = torch.eye(2)[:, :1], torch.ones(2, 2)
    >>> project_(x, left, left.mT) is x
    True
    >>> x
    tensor([[0., 1.],
            [0., 1.]])
    """
    check_dense(x)
    if torch.is_grad_enabled() and x.requires_grad:
        if x.is_leaf:
            raise ValueError("x is a leaf that requires a gradient and cannot change in place: use project(x, ...)")
        return x.copy_(project(x, left, right, mean, index, packed=packed))
    if not _has_kernel(x, left):
        check_project(x, left, right, mean, index)
        check_apart(x)
        return x.copy_(reference.project(x, left, right, mean, index))
    if not x.is_contiguous() and (torch.compiler.is_compiling() or torch._debug_has_internal_overlap(x)):  # type: ignore[attr-defined]
        check_apart(x)
    watched = _watched(x)
    if watched and torch.compiler.is_exporting():  # no table of decompositions reaches an operator that writes
        return x.copy_(project(x, left, right, mean, index))
    try:
        _called(torch.ops.leace_fast.project_.default, (x, left, right, mean, index, packed), watched)
    except RuntimeError:
        check_project(x, left, right, mean, index)
        check_apart(x)
        raise
    if not watched and not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return x


def pack(left: Tensor, right: Tensor) -> Tensor | None:
    """Return factors as matrix units take them, for rows of 16-bit numbers; None where no kernel has a use for that.

    Such rows have other bits with packed factors than without, and errors as small. The bytes belong to this process.

    Args:
        left: (d, k), the transpose of a contiguous tensor.
        right: (k, d), contiguous.

    >>> import torch
    >>> left, x = torch.eye(64)[:, :32], torch.ones(2, 64, dtype=torch.bfloat16)
    >>> bool((project(x, left, left.mT, packed=pack(left, left.mT.contiguous()))[:, :32] == 0).all())
    True
    """
    dense = left.mT.is_contiguous() and right.is_contiguous()
    if not (EXTENSION.present and dense and left.is_cpu and left.dtype == torch.float32):
        return None
    kernels, (dim, rank) = EXTENSION.module, left.shape
    size = kernels.packed_size(dim, rank)
    if not size:
        return None
    packed = torch.empty(size, dtype=torch.uint8)
    kernels.pack(left.mT.detach(), right.detach(), packed)
    return packed


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
    """Return the erased RMS norm of `x + residual`, and that sum in x's dtype: one pass over the rows.

    Computed in the factors' dtype from the rounded sum, and rounded once. Differentiable in x, residual and weight.

    Args:
        x: (..., d) floating.
        residual: of x's shape and dtype, or None: then the sum is x itself.
        weight: (d,) floating, or None for ones.
        eps: added to the mean square.
        left: the eraser, as for `project`; so are right, mean and index.
        weight_offset: added to the weight (1 in Gemma).

    Raises:
        TypeError, ValueError, IndexError: as `project`.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, equation 4.

    >>> import torch
    >>> left = torch.eye(2)[:, :1]
    >>> y, summed = add_rms_norm_project(torch.tensor([3.0, 1.0]), torch.zeros(2), torch.ones(2), 0.0, left, left.mT)
    >>> y, summed
    (tensor([0.0000, 0.4472]), tensor([3., 1.]))
    """
    if _has_kernel(x, left):
        operator = torch.ops.leace_fast.add_rms_norm_project.default
        arguments = (x, residual, weight, eps, left, right, mean, index, weight_offset)
        try:
            y, summed = _called(operator, arguments, _watched(x, residual, weight))
        except RuntimeError:
            check_norm(x, residual, weight, None)
            check_project(x, left, right, mean, index)
            raise
        return y, x if residual is None else summed
    check_norm(x, residual, weight, None)
    check_project(x, left, right, mean, index)
    return reference.add_rms_norm_project(
        x, residual, weight, eps, left, right, mean, index, weight_offset=weight_offset
    )


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
    """Return the erased layer norm of `x + residual`, and that sum in x's dtype: one pass over the rows.

    Computed in the factors' dtype from the rounded sum, and rounded once. Differentiable in x, residual, weight, bias.

    Args:
        x: (..., d) floating.
        residual: of x's shape and dtype, or None: then the sum is x itself.
        weight: (d,) floating, or None for ones.
        bias: (d,) floating, or None for zeros.
        eps: added to the variance.
        left: the eraser, as for `project`; so are right, mean and index.

    Raises:
        TypeError, ValueError, IndexError: as `project`.

    Source: Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450, equation 4.

    >>> import torch
    >>> left = torch.eye(2)[:, :1]
    >>> y, _ = add_layer_norm_project(torch.tensor([3.0, 1.0]), None, torch.ones(2), None, 0.0, left, left.mT)
    >>> y
    tensor([ 0., -1.])
    """
    if _has_kernel(x, left):
        operator = torch.ops.leace_fast.add_layer_norm_project.default
        arguments = (x, residual, weight, bias, eps, left, right, mean, index)
        try:
            y, summed = _called(operator, arguments, _watched(x, residual, weight, bias))
        except RuntimeError:
            check_norm(x, residual, weight, bias)
            check_project(x, left, right, mean, index)
            raise
        return y, x if residual is None else summed
    check_norm(x, residual, weight, bias)
    check_project(x, left, right, mean, index)
    return reference.add_layer_norm_project(x, residual, weight, bias, eps, left, right, mean, index)


def check_index(x: Tensor) -> None:
    """Raise IndexError if rows on the CUDA device of x named an eraser that is not there, since the last check.

    Those rows came out as NaN. This waits for the device; on the CPU, and without the compiled kernels, there is
    nothing to check.
    """
    if x.is_cuda and x.device.type in EXTENSION.devices and (unknown := torch.ops.leace_fast.take_unknown(x)):
        raise IndexError(f"{unknown} rows had an index without an eraser since the last check; they came out as NaN")


def _has_kernel(x: Tensor, left: Tensor) -> bool:
    """Return whether a compiled operator is to be called: transforms and tangents know plain torch only."""
    return (
        EXTENSION.present
        and (x.is_cpu or (x.device.type in EXTENSION.devices and _fits_gpu(x, left)))
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _fits_gpu(x: Tensor, left: Tensor) -> bool:
    """Return whether the CUDA kernels take these: all other rows go to plain torch, which multiplies by cuBLAS."""
    return x.dtype != torch.float64 and left.ndim >= 2 and 0 < left.shape[-1] <= MOST_GPU_RANKS


def _watched(*tensors: Tensor | None) -> bool:
    """Return whether a gradient or a compiler may follow the call: seldom when it counts.

    If none does, a call passes by the autograd layer, which is written in Python and costs more than a row.
    """
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors)


def _called(operator: Callable[..., Any], arguments: tuple[Any, ...], watched: bool) -> Any:
    """Return what an operator makes of its arguments; past the autograd layer unless it is watched."""
    if watched:
        return operator(*arguments)
    with _BelowAutograd():
        return operator(*arguments)
