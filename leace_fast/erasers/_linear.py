"""The best linear map of an eraser: the same erased without an offset, and what that costs."""

from __future__ import annotations

import torch
from torch import Tensor

# A map without an offset may change x so many times as the affine one unless the caller says otherwise.
MAX_COST_RATIO = 1.1


def linear_map(left: Tensor, right: Tensor, mean: Tensor, solve: Tensor) -> tuple[float, Tensor]:
    """Return the cost of the best linear map over that of the affine one, and its R (k, d) but for rounding.

    Whitened with the uncentred second moment M = Sxx + mean mean', whose inverse follows from that of Sxx.

    Args:
        left: (d, k) float64, of the affine map.
        right: (k, d) float64, equal to `L' Sxx^-1`.
        mean: (d,) float64.
        solve: (d,) float64, `Sxx^-1 mean`.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 3, by the formula of Sherman and Morrison.

    >>> e = torch.eye(2, dtype=torch.float64)
    >>> linear_map(e[:, :1], e[:1], e[1], e[1])
    (1.0, tensor([[1., 0.]], dtype=torch.float64))
    """
    read = right @ mean  # equal to L' Sxx^-1 mean
    total = 1 + mean @ solve
    rest = torch.clamp_min(total - read @ read, 1)  # at least 1 but for rounding
    linear = right - torch.outer(read, solve / total)  # L' M^-1
    linear = linear + torch.outer(read, read @ linear) / rest
    affine_cost, offset_cost = float(left.square().sum()), float((left @ read).square().sum() / rest)
    return 1 + offset_cost / affine_cost if offset_cost else 1.0, linear


def reading_alike(linear: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """Return R' (k, d) with what rounding left of `R' L` from `R L` taken out: both must read the same of L.

    Raises:
        ValueError: L reads nothing of itself in one direction, as of an eraser whose parts fit no rows.
    """
    if not left.any():
        return linear
    try:
        return (right @ left) @ torch.linalg.solve(linear @ left, linear)
    except RuntimeError as error:  # of LAPACK
        raise ValueError(f"no linear map erases the same: mean and mean_solve fit no rows ({error})") from error
