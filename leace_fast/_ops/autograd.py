"""What torch must know of the operators besides their kernels: shapes without data, and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import compute_dtype


def _dense_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("leace_fast::project")
def _(x, left, right, mean=None, index=None, packed=None):
    return _dense_like(x)


@torch.library.register_fake("leace_fast::project_")
def _(x, left, right, mean=None, index=None, packed=None):
    return None


@torch.library.register_fake("leace_fast::add_rms_norm_project")
def _(x, residual, weight, eps, left, right, mean=None, index=None, weight_offset=0.0):
    return _dense_like(x), x.new_empty(0) if residual is None else _dense_like(x)


@torch.library.register_fake("leace_fast::add_layer_norm_project")
def _(x, residual, weight, bias, eps, left, right, mean=None, index=None):
    return _dense_like(x), x.new_empty(0) if residual is None else _dense_like(x)


def _through_eraser(gradient: Tensor, left: Tensor, right: Tensor, index: Tensor | None) -> Tensor:
    """Return the gradient before an eraser: the transposed map, without an offset."""
    return torch.ops.leace_fast.project.default(gradient, right.mT, left.mT, None, index)


def _project_setup(ctx, inputs, output) -> None:
    _, left, right, _, index, _ = inputs
    ctx.save_for_backward(left, right, index)


def _project_backward(ctx, gradient: Tensor):
    return _through_eraser(gradient, *ctx.saved_tensors), *[None] * 5


def _norm_backward(
    summed: Tensor,
    scale: Tensor | None,
    eps: float,
    centred: bool,
    gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows and of the weight, before it is summed, for that of a norm's output."""
    rows = summed.to(gradient.dtype)
    if centred:
        rows = rows - rows.mean(-1, keepdim=True)
    factor = torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
    normed = rows * factor
    inner = gradient if scale is None else gradient * scale
    back = inner - normed * (inner * normed).mean(-1, keepdim=True)
    if centred:
        back = back - inner.mean(-1, keepdim=True)
    return back * factor, gradient * normed


def _sum_rows(rows: Tensor, like: Tensor | None) -> Tensor | None:
    return None if like is None else rows.flatten(0, -2).sum(0).to(like.dtype)


def _rms_setup(ctx, inputs, output) -> None:
    x, residual, weight, ctx.eps, left, right, _, index, ctx.weight_offset = inputs
    ctx.residual = residual is not None
    ctx.save_for_backward(x if residual is None else output[1], weight, left, right, index)


def _rms_backward(ctx, gradient: Tensor, sum_gradient: Tensor):
    summed, weight, left, right, index = ctx.saved_tensors
    dtype = compute_dtype(summed.dtype)
    gradient = _through_eraser(gradient.to(dtype), left, right, index)
    scale = None if weight is None else weight.to(dtype) + ctx.weight_offset
    rows, by_row = _norm_backward(summed, scale, ctx.eps, False, gradient)
    rows = (rows + sum_gradient if ctx.residual else rows).to(summed.dtype)
    return rows, rows if ctx.residual else None, _sum_rows(by_row, weight), *[None] * 6


def _layer_setup(ctx, inputs, output) -> None:
    x, residual, weight, bias, ctx.eps, left, right, _, index = inputs
    ctx.residual = residual is not None
    ctx.save_for_backward(x if residual is None else output[1], weight, bias, left, right, index)


def _layer_backward(ctx, gradient: Tensor, sum_gradient: Tensor):
    summed, weight, bias, left, right, index = ctx.saved_tensors
    dtype = compute_dtype(summed.dtype)
    gradient = _through_eraser(gradient.to(dtype), left, right, index)
    scale = None if weight is None else weight.to(dtype)
    rows, by_row = _norm_backward(summed, scale, ctx.eps, True, gradient)
    rows = (rows + sum_gradient if ctx.residual else rows).to(summed.dtype)
    weights = _sum_rows(by_row, weight), _sum_rows(gradient, bias)
    return rows, rows if ctx.residual else None, *weights, *[None] * 5


for _name, _backward, _setup in (
    ("project", _project_backward, _project_setup),
    ("add_rms_norm_project", _rms_backward, _rms_setup),
    ("add_layer_norm_project", _layer_backward, _layer_setup),
):
    torch.library.register_autograd(f"leace_fast::{_name}", _backward, setup_context=_setup)
