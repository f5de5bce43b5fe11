"""Where tensors lie and how: a device that is here, and rows that are dense."""

from __future__ import annotations

import torch
from torch import Tensor


def device_here(device: torch.device | str | int) -> torch.device:
    """Return a device that tensors can be held on.

    Raises:
        ValueError: there is none of that name on this machine.

    >>> device_here("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
        return found if found.type == "cpu" else torch.empty(0, device=found).device
    except (RuntimeError, AssertionError, TypeError) as error:
        cause = str(error).partition(". ")[0].partition("\n")[0]
        raise ValueError(f"device is {device!r}, which is not here ({cause}): name another, such as 'cpu'") from error


def check_dense(x: Tensor, name: str = "x") -> None:
    """Raise TypeError for a sparse or nested tensor, which the kernels cannot read.

    >>> check_dense(torch.eye(2).to_sparse())
    Traceback (most recent call last):
    TypeError: x is of layout torch.sparse_coo, expected a dense tensor: call to_dense() first
    """
    if x.is_nested:
        raise TypeError(f"{name} is a nested tensor, expected a dense one: pad it, or give its values")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} is of layout {x.layout}, expected a dense tensor: call to_dense() first")
