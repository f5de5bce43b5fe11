"""Every operation that has a kernel: checked, registered with torch, and sent to the fastest implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._extension import load

EXTENSION = load()


def project(x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None) -> Tensor:
    """Return `x - ((x - mean) R') L'`, computed in the factors' dtype and rounded once to that of x.

    Differentiable in x; the factors are constants.

    Args:
        x: (..., d) floating.
        left: (d, k), float64 for float64 x and float32 otherwise, on the device of x.
        right: (k, d), likewise.
        mean: (d,), likewise, or None for zero.

    Raises:
        TypeError: x is not floating, or the factors are not of the compute dtype.
        ValueError: a shape does not fit.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 1.

    >>> import torch
    >>> left = torch.tensor([[1.0], [0.0]])
    >>> project(torch.tensor([[3.0, 4.0]]), left, left.mT, torch.tensor([1.0, 0.0]))
    tensor([[1., 4.]])
    """
    check_project(x, left, right, mean)
    if EXTENSION.present and x.device.type == "cpu":
        return torch.ops.leace_fast.project.default(x, left, right, mean)
    return reference.project(x, left, right, mean)


def check_project(x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None) -> None:
    """Raise TypeError or ValueError unless the arguments of `project` fit together."""
    if x.dtype not in reference.ROW_DTYPES:
        raise TypeError(
            f"x has dtype {x.dtype}, expected a floating dtype of 16 bits or more: convert it, as by x.float()"
        )
    if left.ndim != 2 or right.shape != left.shape[::-1]:
        raise ValueError(f"left {tuple(left.shape)} and right {tuple(right.shape)}, expected (d, k) and (k, d)")
    if x.ndim == 0 or x.shape[-1] != left.shape[0]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected (..., {left.shape[0]}): its last dimension must be that of left"
        )
    if mean is not None and mean.shape != left.shape[:1]:
        raise ValueError(f"mean has shape {tuple(mean.shape)}, expected {tuple(left.shape[:1])}")
    expected = reference.compute_dtype(x.dtype)
    if any(part is not None and part.dtype != expected for part in (left, right, mean)):
        raise TypeError(f"the factors have dtype {left.dtype}, expected {expected} for x of {x.dtype}")


if EXTENSION.present:

    @torch.library.register_fake("leace_fast::project")
    def _project_fake(x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    def _project_setup(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    def _project_backward(ctx, gradient: Tensor):
        left, right = ctx.saved_tensors
        # The transposed map, without an offset.
        return project(gradient, right.mT, left.mT, None), None, None, None

    torch.library.register_autograd("leace_fast::project", _project_backward, setup_context=_project_setup)
