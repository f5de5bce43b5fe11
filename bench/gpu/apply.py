"""The erasure on a GPU, timed: our kernels and the strongest forms of plain torch on the same rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from timing import Work, ceilings, compiled, rotation, row
from torch import Tensor
from torch.nn import functional

from leace_fast._ops import operators as ops

DIM, PREFILL, DECODE, RANKS = 4096, (4096, 65536), (1, 16, 64), (1, 8, 16, 64)
CALLS = 64  # of one measurement of few rows: its start and end cost as much as a call
EPS = 1e-6
Erase = Callable[[Tensor], Tensor]


def rows(
    device: torch.device,
    rates: dict[str, float] | None = None,
    dim: int = DIM,
    prefill: tuple[int, ...] = PREFILL,
    decode: tuple[int, ...] = DECODE,
    ranks: tuple[int, ...] = RANKS,
) -> Iterator[dict[str, Any]]:
    """Yield one measurement after the other; each peer has first agreed with float64."""
    if device.type == "cuda" and "cuda" not in ops.EXTENSION.devices:
        raise RuntimeError("the CUDA kernels of the erasure are not built here: python setup.py build_ext --inplace")
    rates = rates or ceilings(device)
    for count in prefill:
        for rank in ranks:
            yield from many_rows(device, rates, count, dim, rank, torch.bfloat16)
    yield from many_rows(device, rates, prefill[0], dim, ranks[0], torch.float32)
    for rank in ranks:
        yield from after_norm(device, rates, prefill[-1], dim, rank)
    for count in decode:
        for rank in ranks:
            yield from few_rows(device, rates, count, dim, rank)
    yield from mixed(device, rates, decode[-1], dim, ranks[-1])


class Factors:
    """An eraser with R L = I: as our kernels take it, and in the dtype of the rows, as one writes it in a model."""

    def __init__(self, dim: int, rank: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(dim + rank)
        right = torch.randn(rank, dim, generator=generator, device=device) / dim**0.5
        self.right, self.left = right, torch.linalg.pinv(right.double()).float().mT.contiguous().mT
        self.mean = torch.randn(dim, generator=generator, device=device)
        left, right, mean = self.left.to(dtype), self.right.to(dtype), self.mean.to(dtype)
        left_t, right_t, offset = left.mT.contiguous(), right.mT.contiguous(), left @ (right @ mean)

        def plain(x: Tensor) -> Tensor:
            return x - ((x - mean) @ right_t) @ left_t

        # The fewest passes that plain torch allows; the offset, formed beforehand, loses digits at large means.
        self.peers: dict[str, Erase] = {
            "leace-fast": lambda x: ops.project(x, self.left, self.right, self.mean),
            "torch": plain,
            "torch.compile": compiled(plain),
            "torch.addmm": lambda x: torch.addmm(x + offset, x @ right_t, left_t, alpha=-1),
        }

    def error(self, erase: Erase, x: Tensor) -> float:
        """Return the largest error over the largest entry, and raise if the peer computes something else."""
        some = x[:64].double()
        exact = some - ((some - self.mean.double()) @ self.right.double().mT) @ self.left.double().mT
        return checked(erase(x)[:64], exact)


def checked(out: Tensor, exact: Tensor) -> float:
    error = float((out.double() - exact).abs().max() / exact.abs().max())
    if not error <= 2**-4:  # what factors in bfloat16 cost; NaN does not pass
        raise RuntimeError(f"the error is {error:.1e} of the largest entry: what is timed is not the erasure")
    return error


def block(count: int, dim: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """Return a function that hands out random rows, in turn from more than the caches hold."""
    return rotation(lambda: torch.randn(count, dim, device=device).to(dtype))


def many_rows(
    device: torch.device, rates: dict[str, float], count: int, dim: int, rank: int, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Compare prefill with a copy of the same bytes: the factors stay in the caches."""
    factors, turn = Factors(dim, rank, dtype, device), block(count, dim, dtype, device)
    size = dtype.itemsize
    name = f"erase d={dim} N={count} k={rank} {str(dtype).removeprefix('torch.')}"
    need = Work(name, 2 * count * dim * size, 4 * count * dim * rank, size == 2)
    out = torch.empty(count, dim, dtype=dtype, device=device)
    yield row(need, "copy", lambda: out.copy_(turn()), rates)
    for peer, erase in factors.peers.items():
        error = factors.error(erase, turn())
        yield row(need, peer, lambda erase=erase: erase(turn()), rates, error=error)
    in_place = block(count, dim, dtype, device)

    def erase_(x: Tensor) -> Tensor:
        return ops.project_(x, factors.left, factors.right, factors.mean)

    error = factors.error(lambda x: erase_(x.clone()), turn())
    yield row(need, "leace-fast in place", lambda: erase_(in_place()), rates, error=error)


def after_norm(
    device: torch.device, rates: dict[str, float], count: int, dim: int, rank: int
) -> Iterator[dict[str, Any]]:
    """Compare residual add, RMS norm and erasure in one pass with residual add and RMS norm alone."""
    dtype = torch.bfloat16
    factors = Factors(dim, rank, dtype, device)
    weight = torch.randn(dim, device=device).to(dtype)
    turn, residual = block(count, dim, dtype, device), block(count, dim, dtype, device)
    need = Work(f"add + RMSNorm + erase d={dim} N={count} k={rank}", 4 * count * dim * 2, 4 * count * dim * rank)

    def ours(x: Tensor, r: Tensor) -> Tensor:
        left, right, mean = factors.left, factors.right, factors.mean
        return ops.add_rms_norm_project(x, r, weight, EPS, left, right, mean)[0]

    def alone(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        summed = x + r
        return functional.rms_norm(summed, (dim,), weight, EPS), summed

    def apart(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        normed, summed = alone(x, r)
        return factors.peers["torch"](normed), summed

    x, r = turn(), residual()
    normed = functional.rms_norm((x[:64] + r[:64]).double(), (dim,), weight.double(), EPS)
    exact = normed - ((normed - factors.mean.double()) @ factors.right.double().mT) @ factors.left.double().mT
    yield row(need, "leace-fast", lambda: ours(turn(), residual()), rates, error=checked(ours(x, r)[:64], exact))
    joined = compiled(apart)
    error = checked(joined(x, r)[0][:64], exact)
    yield row(need, "torch.compile", lambda: joined(turn(), residual()), rates, error=error)
    norm = compiled(alone)
    need = replace(need, operations=0)
    yield row(need, "torch.compile, without the erasure", lambda: norm(turn(), residual()), rates)


def few_rows(
    device: torch.device, rates: dict[str, float], count: int, dim: int, rank: int
) -> Iterator[dict[str, Any]]:
    """Time decode, replayed from a CUDA graph and called one by one."""
    factors = Factors(dim, rank, torch.bfloat16, device)
    # The rows alone: at this size the factors come from the L2 cache, and starting a kernel outlasts both.
    need = Work(f"decode d={dim} N={count} k={rank}", 2 * count * dim * 2, 4 * count * dim * rank)
    inputs = [torch.randn(count, dim, device=device).bfloat16() for _ in range(CALLS)]
    turn = itertools.cycle(inputs).__next__
    for peer, erase in factors.peers.items():
        error = factors.error(erase, inputs[0])
        for how, graph in (("called", False), ("in a graph", True)):
            yield row(need, f"{peer}, {how}", lambda erase=erase: erase(turn()), rates, CALLS, graph, error=error)


def mixed(device: torch.device, rates: dict[str, float], count: int, dim: int, rank: int) -> Iterator[dict[str, Any]]:
    """Time a decode batch in which every row has its own eraser or none."""
    erasers = [Factors(dim, rank, torch.bfloat16, device) for _ in range(8)]
    left = torch.stack([eraser.left.mT for eraser in erasers]).mT
    right, mean = (torch.stack([getattr(eraser, part) for eraser in erasers]) for part in ("right", "mean"))
    index = torch.arange(count, device=device) % (len(erasers) + 1) - 1
    inputs = [torch.randn(count, dim, device=device).bfloat16() for _ in range(CALLS)]
    turn = itertools.cycle(inputs).__next__
    name = f"decode d={dim} N={count} k={rank} of {len(erasers)} erasers or none"
    need = Work(name, 2 * count * dim * 2, 4 * count * dim * rank)

    def erase(x: Tensor) -> Tensor:
        return ops.project(x, left, right, mean, index)

    kept = index < 0
    if not torch.equal(erase(inputs[0])[kept], inputs[0][kept]):
        raise RuntimeError("rows without an eraser have changed")
    yield row(need, "leace-fast, in a graph", lambda: erase(turn()), rates, CALLS, True)
