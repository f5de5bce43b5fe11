"""What is timed: random rows past the caches, and what an operation cannot do without."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

POOL_ELEMENTS = 100_000_000  # 400 MB of float32: more than any cache
MAX_VIEWS = 4096


@functools.cache
def pool(dtype: torch.dtype) -> Tensor:
    """Return random numbers to cut rows from; never zeros, which multiply faster."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(POOL_ELEMENTS, generator=generator).to(dtype)


def rotation(dtype: torch.dtype, rows: int, dim: int) -> Iterator[Tensor]:
    """Yield blocks (rows, dim) from all over the pool, forever: each comes again only after all others."""
    blocks = pool(dtype)[: POOL_ELEMENTS // (rows * dim) * rows * dim].view(-1, rows, dim)
    step = max(len(blocks) // MAX_VIEWS, 1)
    return itertools.cycle(list(blocks[::step]))


@dataclass(frozen=True)
class Work:
    """What an operation cannot do without, whoever implements it.

    Attributes:
        group: the operation and its sizes; peers share it.
        bytes: that must be read and written.
        operations: additions and multiplications.
        dtype: whose arithmetic rate bounds them.
    """

    group: str
    bytes: int
    operations: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Candidate:
    """One way to do a piece of work; `error` is that of its result, checked before it is timed."""

    error: float
    call: Callable[[], object]

    def seconds(self) -> float:
        begin = time.perf_counter()
        self.call()
        return time.perf_counter() - begin
