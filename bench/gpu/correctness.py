"""Correct first: statistics on a device against float64, the same to the bit on every repeat, without waiting."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from leace_fast import Moments

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Of an entry of the correlation matrix. Narrow rows that are shifted are rounded, by 2^-9 or 2^-12 of themselves.
ROUNDING = {torch.bfloat16: 2**-9, torch.float16: 2**-12, torch.float32: 0.0}
BOUND = 5e-6


def sample(rows: int, dim: int, dtype: torch.dtype, offset: float, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(rows, dim, generator=generator, device=device) + offset).to(dtype)


def labels(rows: int, classes: int, device: torch.device) -> Tensor:
    y = torch.randint(classes, (rows,), generator=torch.Generator(device).manual_seed(1), device=device)
    y[:: max(rows // 50, 2)] = -100
    return y


def errors(moments: Moments, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the errors of counts, class sums and correlation matrix against float64."""
    keep = y >= 0
    rows, used = x[keep].double(), y[keep]
    state = moments._flush()
    counts = torch.bincount(used, minlength=moments.num_classes or 1)
    members = torch.nn.functional.one_hot(used, moments.num_classes or 1).double()
    moved = rows - state.shift
    sums = members.mT @ moved
    size = moved.abs().sum(0) + 1e-300
    centred = rows - rows.mean(0)
    unit = centred.square().mean(0).sqrt()
    scaled = (moments.covariance - centred.mT @ centred / len(rows)) / torch.outer(unit, unit)
    return {
        "counts": float((state.counts - counts).abs().max()),
        "sums": float(((state.sums - sums) / size).abs().max()),
        "diagonal": float(scaled.diagonal().abs().max()),
        "correlation": float(scaled.abs().max()),
        "spectral": float(torch.linalg.matrix_norm(scaled, 2)),
    }


def check_sums(device: torch.device, shapes: list[tuple[int, int]], offsets: tuple[float, ...]) -> list[dict[str, Any]]:
    """Hold counts, sums and second moments of random rows to float64, for every dtype and way of multiplying."""
    found = []
    kinds = [(dtype, "high") for dtype in DTYPES] + [(torch.float32, "ieee")]
    for (rows, dim), (dtype, precision), offset in itertools.product(shapes, kinds, offsets):
        x, y = sample(rows, dim, dtype, offset, device, rows), labels(rows, 5, device)
        moments = Moments(dim, 5, device=device, precision=precision)  # type: ignore[arg-type]
        for part_x, part_y in zip(x.split(rows // 3 + 1), y.split(rows // 3 + 1), strict=True):
            moments.update(part_x, part_y)
        error = errors(moments, x, y)
        assert error["counts"] == 0, error
        assert error["sums"] <= 1e-13, error
        bound = BOUND + 10 * ROUNDING[dtype] / rows**0.5
        assert error["correlation"] <= bound, f"{rows} x {dim} {dtype} {precision} at offset {offset}: {error}"
        found.append({"rows": rows, "dim": dim, "dtype": str(dtype), "precision": precision, "offset": offset} | error)
    return found


def check_repeats(device: torch.device, repeats: int, rows: int, dim: int) -> int:
    """Hold every repeat to the bits of the first."""
    x, y = sample(rows, dim, torch.bfloat16, 1.0, device, 3), labels(rows, 3, device)
    first = Moments(dim, 3, device=device).update(x, y)._flush()
    for _ in range(repeats - 1):
        again = Moments(dim, 3, device=device).update(x, y)._flush()
        for name, tensor in first.tensors().items():
            assert torch.equal(tensor, getattr(again, name)), f"{name} differs on a repeat"
    return repeats


def check_no_waiting(device: torch.device, sites: int, rows: int, dim: int, steps: int = 20) -> dict[str, int]:
    """Hold the statistics of many sites to no synchronisation and no allocation, once they are warm."""
    x, y = sample(rows, dim, torch.bfloat16, 0.0, device, 4), labels(rows, 2, device)
    moments = [Moments(dim, 2, device=device) for _ in range(sites)]

    def step() -> None:
        for one in moments:
            one.update(x, y)

    for _ in range(3 + 32768 // rows):  # until each has met a full block
        step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(steps):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    allocated = torch.cuda.memory_stats()["allocation.all.allocated"] - before
    assert allocated == 0, f"{allocated} allocations in {steps} steps of {sites} sites"
    return {"sites": sites, "steps": steps, "allocations": allocated, "synchronisations": 0}


def check_drift(device: torch.device, rows: int, dim: int, ratio: float, block: int = 1 << 17) -> dict[str, float]:
    """Stream many rows whose mean is `ratio` standard deviations away, against float64 sums on the fly."""
    moments = Moments(dim, 2, device=device)
    count, total = 0, torch.zeros(dim, dtype=torch.float64, device=device)
    second = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    y = torch.arange(block, device=device) % 2
    pool = [sample(block, dim, torch.bfloat16, ratio, device, seed) for seed in range(8)]
    while count < rows:
        x = pool[count // block % len(pool)].roll(count // block, 0)  # another order each time
        moments.update(x, y)
        wide = x.double() - ratio
        total += wide.sum(0)
        second.addmm_(wide.mT, wide)
        count += block
    mean = total / count
    exact = second / count - torch.outer(mean, mean)
    unit = exact.diagonal().sqrt()
    scaled = (moments.covariance - exact) / torch.outer(unit, unit)
    return {
        "rows": count,
        "dim": dim,
        "mean / std": ratio,
        "diagonal": float(scaled.diagonal().mean()),
        "worst": float(scaled.abs().max()),
        "spectral": float(torch.linalg.matrix_norm(scaled, 2)),
    }
