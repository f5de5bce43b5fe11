"""`Adapter`: one eraser as a LoRA of one linear layer, in 16 bits too without what rounding would leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..erasers import Eraser
from ._agreement import share

# of the mean squared change of x, which a rounded R may add before R too is held in two parts
MAX_DAMAGE = 0.01


@dataclass(frozen=True)
class Adapter:
    """`x -> up (down x) + bias`, to be added to a linear layer's output."""

    down: Tensor  # (r, in), PEFT's lora_A
    up: Tensor  # (out, r), PEFT's lora_B
    bias: Tensor | None
    leak: float

    def tensors(self) -> dict[str, Tensor]:
        named = {"lora_A.weight": self.down, "lora_B.weight": self.up, "lora_B.bias": self.bias}
        # R serves all readers of a site, but a file holds no tensor twice
        return {name: part.cpu().clone() for name, part in named.items() if part is not None}

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(self.down.dtype) @ self.down.mT, self.up, self.bias)


class Factors:
    """The factors of one eraser in the dtype of an adapter, shared by all readers of its site."""

    def __init__(self, eraser: Eraser, rows: Tensor, dtype: torch.dtype, split: bool) -> None:
        self.dtype = dtype
        self.exact_left, self.exact_right = eraser.left.to(rows), eraser.right.to(rows)
        self.mean = None if eraser.mean is None else eraser.mean.to(rows)
        # rows of R at about unit length, by powers of two: no digit is lost, and half precision stays in range
        scale = torch.exp2(-torch.log2(self.exact_right.norm(dim=1).clamp_min(1e-300)).round())[:, None]
        right, left = self.exact_right * scale, self.exact_left / scale.mT
        high, low = _split(right, dtype)
        self.parts = 2 if split and dtype.itemsize < 4 and bool((high != right).any()) else 1
        self.left, self.right = left, high.double()
        if self.parts > 1:
            self._refit(right)
        self.damage = self._damage(rows)
        self.down = torch.cat([high] * self.parts)
        if self.parts > 1 and self.damage > MAX_DAMAGE:
            self.parts, self.right, self.left = 3, high.double() + low.double(), left
            self._refit(right)
            self.damage = self._damage(rows)
            self.down = torch.cat([high, high, low])

    def _refit(self, right: Tensor) -> None:
        """Fit L to the rounded R, so that what both do to the columns of L stays what it was."""
        if self.left.any():
            self.left = self.left @ torch.linalg.solve((self.right @ self.left).mT, (right @ self.left).mT).mT

    def _damage(self, rows: Tensor) -> float:
        centred = rows if self.mean is None else rows - self.mean
        exact = centred @ self.exact_right.mT @ self.exact_left.mT
        return share(centred @ self.right.mT @ self.left.mT, exact) ** 2 - 1 if exact.any() else 0.0

    def adapter(self, weight: Tensor, with_bias: bool) -> Adapter:
        """The adapter of a layer with a weight (out, in) in float64; without an offset its bias is zero."""
        high, low = _split(-(weight @ self.left), self.dtype)
        up = torch.cat([high, low, high][: self.parts], dim=1)
        bias = None
        if with_bias:
            mean = torch.zeros_like(weight[0]) if self.mean is None else self.mean
            bias = (weight @ self.left @ (self.right @ mean)).to(self.dtype)
        seen = weight @ self.exact_left
        remains = up.double() @ (self.down.double() @ self.exact_left) + seen @ (self.exact_right @ self.exact_left)
        return Adapter(self.down, up, bias, share(remains, seen))


def _split(exact: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix as a sum of two in a narrower dtype."""
    high = exact.to(dtype)
    return high, (exact - high.to(exact.dtype)).to(dtype)
