"""How several erasers lie in one memory: stacked factors, by rank as the kernels read them, padded with zeros."""

from __future__ import annotations

from torch import Tensor

from ._eraser import Eraser

Stacks = tuple[Tensor, Tensor, Tensor]


def split(memory: Tensor, rank: int, dim: int) -> Stacks:
    """Return the stacked left (n, d, k), right (n, k, d) and mean (n, d) in some memory (n (2 k + 1) d,)."""
    size = rank * dim
    n = memory.numel() // (2 * size + dim)
    left, right, mean = memory.split((n * size, n * size, n * dim))
    return left.view(n, rank, dim).mT, right.view(n, rank, dim), mean.view(n, dim)


def write(stacks: Stacks, place: int, eraser: Eraser) -> None:
    """Write an eraser to a place."""
    for stack in stacks:
        stack[place].zero_()
    left, right, mean = stacks
    left[place, :, : eraser.rank] = eraser.left
    right[place, : eraser.rank] = eraser.right
    if (centre := eraser.mean) is not None:
        mean[place] = centre


def read(stacks: Stacks, place: int) -> Eraser:
    """Return the eraser at a place, of the rank that places have."""
    left, right, mean = (stack[place] for stack in stacks)
    return Eraser(left, right, mean)
