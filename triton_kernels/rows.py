"""Rows as they lie in memory, and what is known of each: what the kernels are handed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Strided(NamedTuple):
    """Rows as they lie in memory: row i of `tensor` stands at (i // length) outer + (i % length) inner."""

    tensor: Tensor
    outer: int
    inner: int
    column: int

    @classmethod
    def of(cls, part: Tensor, lead: int, device: torch.device) -> Strided:
        """Return a tensor with `lead` leading axes as it lies. Only those with more than two may have to be copied."""
        # From pinned memory this waits: the caller may fill it again at once.
        part = part.detach().to(device)
        if part.dtype == torch.bool:
            part = part.view(torch.uint8)
        if lead > 2:
            part, lead = part.flatten(0, lead - 2), 2
        strides = part.stride()
        outer, inner = (0, 0, *strides[:lead])[-2:]
        return cls(part, outer, inner, strides[-1] if len(strides) > lead else 0)


class Part(NamedTuple):
    """Rows begin..begin+count of x (..., length, dim)."""

    x: Strided
    begin: int
    length: int
    count: int

    def arguments(self) -> dict[str, Any]:
        """Return what kernels know them by."""
        return {
            "x": self.x.tensor,
            "begin": self.begin,
            "length": self.length,
            "x_outer": self.x.outer,
            "x_inner": self.x.inner,
            "x_column": self.x.column,
        }

    def fetched(self, dim: int) -> Tensor | None:
        """Return the rows as a view (count, dim) that the tensor memory accelerator can read, or None."""
        x, begin, length, count = self
        stride = x.inner if length > 1 else x.outer
        offset = begin // length * x.outer + begin % length * x.inner
        apart = begin // length != (begin + count - 1) // length and x.outer != length * stride
        size = x.tensor.element_size()
        aligned = (x.tensor.data_ptr() + offset * size) % 16 == stride * size % 16 == 0
        if apart or x.column != 1 or stride < dim or not aligned:
            return None
        return x.tensor.as_strided((count, dim), (stride, 1), x.tensor.storage_offset() + offset)


class Batch(NamedTuple):
    """Rows x (..., length, dim) with labels or targets, a mask and weights, each with the strides that it has."""

    length: int
    x: Strided
    y: Strided
    mask: Strided | None
    weight: Strided | None
    ignore: int  # the label of rows to leave out

    @classmethod
    def of(
        cls, x: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None, ignore: int, device: torch.device
    ) -> Batch:
        """Return rows x (..., dim) with labels (...) or targets (..., t), a mask (...) and weights (...)."""
        lead = x.ndim - 1
        return cls(
            length=x.shape[-2] if lead else 1,
            x=Strided.of(x, lead, device),
            y=Strided.of(y, lead, device),
            mask=None if mask is None else Strided.of(mask, lead, device),
            weight=None if weight is None else Strided.of(weight, lead, device),
            ignore=ignore,
        )

    def part(self, begin: int, count: int) -> Part:
        """Return rows begin..begin+count of x."""
        return Part(self.x, begin, self.length, count)


class Waiting(NamedTuple):
    """What is known of each row of a block."""

    codes: Tensor  # (rows,) int32: its class, or why it is left out
    weights: Tensor  # (rows,) float64
    targets: Tensor  # (rows, targets) float64
