"""Erasing rows, `x - ((x - mean) R') L'`: prefill and decode."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from concept_erasure import LeaceEraser
from torch import Tensor
from work import Work, rotation

import leace_fast as lf
from leace_fast.models import multiplies

ROWS, DIMS, RANKS = (1, 16, 256, 4096), (768, 2048, 4096), (1, 8, 64)
DTYPES = (torch.float32, torch.bfloat16)
Factors = tuple[Tensor, Tensor, Tensor]


@functools.cache
def factors(dim: int, rank: int) -> Factors:
    """Return `left`, `right` with R L = I, and a mean, float32."""
    generator = torch.Generator().manual_seed(dim + rank)
    left = torch.randn(dim, rank, generator=generator) / dim**0.5
    return left, torch.linalg.pinv(left), torch.randn(dim, generator=generator)


def ours(left: Tensor, right: Tensor, mean: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lf.Eraser(left, right, mean)


def concept_erasure(left: Tensor, right: Tensor, mean: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return LeaceEraser(left, right, mean)


def torch_eager(left: Tensor, right: Tensor, mean: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The formula as one writes it in a model of that dtype; in bfloat16 the rounded factors leave some concept."""
    left, right, mean = left.to(dtype), right.to(dtype), mean.to(dtype)
    return lambda x: x - ((x - mean) @ right.mT) @ left.mT


def torch_addmm(left: Tensor, right: Tensor, mean: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The fewest passes that eager torch allows; the offset, formed beforehand, loses digits at large means."""
    left_t, right_t, offset = left.mT.to(dtype), right.mT.to(dtype), (left @ (right @ mean)).to(dtype)
    return lambda x: torch.addmm(x + offset, x @ right_t, left_t, alpha=-1)


def numpy_eager(left: Tensor, right: Tensor, mean: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    left_t, right_t, offset = left.numpy().T, right.numpy().T, mean.numpy()

    def erase(x: Tensor) -> Tensor:
        rows = x.numpy()
        return torch.from_numpy(rows - ((rows - offset) @ right_t) @ left_t)

    return erase


def torch_compile(left: Tensor, right: Tensor, mean: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The formula of `torch`, compiled once for any number of rows."""
    return torch.compile(torch_eager(left, right, mean, dtype), dynamic=True)


PEERS = {
    "leace-fast": ours,
    "concept-erasure": concept_erasure,
    "torch": torch_eager,
    "torch addmm": torch_addmm,
    "torch.compile": torch_compile,
    "NumPy": numpy_eager,
}
# Largest error over largest entry of y. With factors in bfloat16 the result is right to their digits only.
TOLERANCE = {
    ("leace-fast", torch.bfloat16): 2**-8,
    ("concept-erasure", torch.bfloat16): 2**-8,
    ("torch", torch.bfloat16): 2**-5,
    ("torch addmm", torch.bfloat16): 2**-5,
    ("torch.compile", torch.bfloat16): 2**-5,
}
COMPILED = (2048, 8)  # the width and rank that torch.compile is measured at: compiling takes longer than measuring


def is_measured(dim: int, rank: int, dtype: torch.dtype, peer: str) -> bool:
    if peer == "NumPy":
        return dtype != torch.bfloat16  # it has none
    if peer.startswith("torch") and not multiplies(dtype):
        return False  # a call takes seconds
    return peer != "torch.compile" or (dim, rank) == COMPILED


CASES = [
    (dim, rows, rank, dtype, peer)
    for dim, rank, dtype, peer, rows in itertools.product(DIMS, RANKS, DTYPES, PEERS, ROWS)
    if is_measured(dim, rank, dtype, peer)
]


@functools.cache
def eraser(peer: str, dim: int, rank: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return PEERS[peer](*factors(dim, rank), dtype)


@pytest.mark.parametrize(("dim", "rows", "rank", "dtype", "peer"), CASES)
def bench_apply(measure, dim: int, rows: int, rank: int, dtype: torch.dtype, peer: str) -> None:
    left, right, mean = factors(dim, rank)
    erase = eraser(peer, dim, rank, dtype)
    stream = rotation(dtype, rows, dim)

    x = next(stream)
    exact = x.double() - ((x.double() - mean.double()) @ right.double().mT) @ left.double().mT
    error = float((erase(x).double() - exact).abs().max() / exact.abs().max())
    assert error <= TOLERANCE.get((peer, dtype), 1e-5)

    size = x.element_size()
    work = Work(
        group=f"apply d={dim} N={rows} k={rank} {str(dtype).removeprefix('torch.')}",
        bytes=2 * rows * dim * size,  # the factors stay in the caches
        operations=rows * dim * (4 * rank + 2),
        dtype=torch.float32,
    )
    measure(work, peer, error, lambda: erase(next(stream)))
