"""An eraser for rows before the scale and the bias of the norm that they come from."""

from __future__ import annotations

import torch
from torch import Tensor

Parts = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None"]


def rescaled_parts(
    left: Tensor, right: Tensor, mean: Tensor | None, solve: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Parts:
    """Return `L / g, R g, (mean - b) / g` and `Sxx^-1 mean` in those units, in float64, on the device of left.

    Args:
        left, right, mean, solve: of an eraser of x.
        weight: g (d,), such that x is `g * rows + b`.
        bias: b (d,), or None for zeros.

    Raises:
        ValueError: weight or bias has another shape, weight holds a zero, or one of them is not finite.

    >>> e = torch.eye(2, dtype=torch.float64)
    >>> left, right, mean, solve = rescaled_parts(e[:, :1], e[:1], e[0], None, torch.tensor([2.0, 4.0]), None)
    >>> left.tolist(), right.tolist(), mean.tolist(), solve
    ([[0.5], [0.0]], [[2.0, 0.0]], [0.5, 0.0], None)
    """
    scale = _checked("weight", weight, left)
    shift = torch.zeros_like(scale) if bias is None else _checked("bias", bias, left)
    if not bool(scale.all()):
        number = int((scale == 0).sum())
        raise ValueError(f"weight is zero in {number} places: what the norm puts out there does not tell its rows")
    shifted = bool(shift.any())
    origin = torch.zeros_like(scale) if mean is None else mean.double()
    moved = (origin - shift) / scale if mean is not None or shifted else None
    # of a shifted mean nothing is known but the mean itself
    kept = None if solve is None or shifted else solve * scale
    return left.double() / scale[:, None], right.double() * scale, moved, kept


def _checked(name: str, part: Tensor, left: Tensor) -> Tensor:
    if part.shape != left.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(part.shape)}, expected {tuple(left.shape[:1])}, that of a row")
    part = part.detach().to(left.device, torch.float64)
    if not bool(part.isfinite().all()):
        raise ValueError(f"{name} holds NaN or Inf, expected finite numbers")
    return part
