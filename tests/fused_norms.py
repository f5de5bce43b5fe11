"""A norm spelt out, and norms that are fused with an eraser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from leace_fast import Eraser
from leace_fast.attaching._erasure import Erasure, erase_in
from leace_fast.attaching._fused_norms import FusedNorm, find_formula


class RMS(nn.Module):
    """An RMSNorm as one writes it, with options that make it another formula."""

    def __init__(self, dim: int, offset: float = 0.0, eps: float = 1e-5, power: float = 0.5, own: bool = True) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(dim))
        self.offset, self.power, self.hidden = offset, power, [eps] if own else [0.7 * eps]
        self.wrong = 3 * eps  # a number that is not eps

    def forward(self, x: Tensor) -> Tensor:
        square = x.square().mean(-1, keepdim=True) + self.hidden[0]
        return x * square**-self.power * (self.scale + self.offset)


def fuse(norm: nn.Module, eraser: Eraser) -> Callable[[], None]:
    return erase_in(norm, Erasure(eraser, FusedNorm(find_formula(norm, eraser.dim), eraser)))
