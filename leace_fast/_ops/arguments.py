"""What is said of arguments that do not fit an operation of the apply."""

from __future__ import annotations

import torch
from torch import Tensor

from .devices import check_dense
from .reference import ROW_DTYPES, compute_dtype


def check_apart(x: Tensor) -> None:
    """Raise ValueError if rows of x share memory: they cannot change in place."""
    if not x.numel():
        return
    end = 1  # of what the dimensions so far reach
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride < end:
            kind = "expanded" if stride == 0 else "of overlapping strides"
            raise ValueError(f"x is {kind}: its rows share memory and cannot change in place, clone it first")
        end += (size - 1) * stride


def check_project(
    x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None = None, index: Tensor | None = None
) -> None:
    """Raise TypeError, ValueError or IndexError unless the arguments of `project` fit together."""
    check_dense(x)
    if x.dtype not in ROW_DTYPES:
        raise TypeError(
            f"x has dtype {x.dtype}, expected a floating dtype of 16 bits or more: convert it, as by x.float()"
        )
    stack, names = ((), "(d, k) and (k, d)") if index is None else (left.shape[:1], "(E, d, k) and (E, k, d)")
    if left.ndim != 2 + len(stack) or right.shape != (*stack, left.shape[-1], left.shape[-2]):
        raise ValueError(f"left {tuple(left.shape)} and right {tuple(right.shape)}, expected {names}")
    if x.ndim == 0 or x.shape[-1] != left.shape[-2]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected (..., {left.shape[-2]}): its last dimension must be that of left"
        )
    if mean is not None and mean.shape != left.shape[:-1]:
        raise ValueError(f"mean has shape {tuple(mean.shape)}, expected {tuple(left.shape[:-1])}")
    expected = compute_dtype(x.dtype)
    if any(part is not None and part.dtype != expected for part in (left, right, mean)):
        raise TypeError(f"the factors have dtype {left.dtype}, expected {expected} for x of {x.dtype}")
    if index is not None:
        _check_index(x, len(left), index)


def _check_index(x: Tensor, erasers: int, index: Tensor) -> None:
    """Raise TypeError, ValueError or IndexError unless `index` names an eraser, or none, for each row of x."""
    if index.dtype != torch.int64:
        raise TypeError(f"index has dtype {index.dtype}, expected torch.int64")
    if index.shape != x.shape[:-1]:
        raise ValueError(
            f"index has shape {tuple(index.shape)}, expected {tuple(x.shape[:-1])}: one number for each row"
        )
    readable = index.is_cpu and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    if readable and index.numel():
        least, most = (int(bound) for bound in index.aminmax())
        if least < -1 or most >= erasers:
            raise IndexError(f"index holds {least} to {most}, expected -1 (none) or one of {erasers} erasers")


def check_norm(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise TypeError or ValueError unless what is added and normed fits x."""
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, expected {tuple(x.shape)}, that of x")
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f"residual has dtype {residual.dtype}, expected {x.dtype}, that of x")
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and part.shape != x.shape[-1:]:
            raise ValueError(f"{name} has shape {tuple(part.shape)}, expected {tuple(x.shape[-1:])}")
        if part is not None and part.dtype not in ROW_DTYPES:
            raise TypeError(f"{name} has dtype {part.dtype}, expected a floating dtype of 16 bits or more")
