"""Correct first: statistics on a device against float64, the same to the bit on every repeat, without waiting."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from leace_fast import Moments, record
from leace_fast.statistics import GPU_ROW_DTYPES, IGNORE

# Of an entry of the correlation matrix. Narrow rows that are shifted are rounded, by 2^-9 or 2^-12 of themselves.
ROUNDING = {torch.bfloat16: 2**-9, torch.float16: 2**-12, torch.float32: 0.0}
BOUND = 5e-6


def sample(rows: int, dim: int, dtype: torch.dtype, offset: float, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(rows, dim, generator=generator, device=device) + offset).to(dtype)


def labels(rows: int, classes: int, device: torch.device) -> Tensor:
    y = torch.randint(classes, (rows,), generator=torch.Generator(device).manual_seed(1), device=device)
    y[1 :: max(rows // 50, 2)] = IGNORE
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
    scaled = (moments.covariance - centred.mT @ centred / len(rows)) / torch.outer(unit, unit).clamp(min=1e-300)
    return {
        "counts": float((state.counts - counts).abs().max()),
        "sums": float(((state.sums - sums) / size).abs().max()),
        "diagonal": float(scaled.diagonal().abs().max()),
        "correlation": float(scaled.abs().max()),
        "spectral": float(torch.linalg.eigvalsh(scaled).abs().max()),
    }


def check_sums(device: torch.device, shapes: list[tuple[int, int]], offsets: tuple[float, ...]) -> list[dict[str, Any]]:
    """Hold counts, sums and second moments of random rows to float64, for every dtype and way of multiplying."""
    found = []
    kinds = [(dtype, "high") for dtype in GPU_ROW_DTYPES] + [(torch.float32, "ieee")]
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


@contextmanager
def no_waiting(device: torch.device) -> Iterator[list[int]]:
    """Let every wait for the device raise, and note how many tensors torch allocates there."""
    found: list[int] = []
    if device.type != "cuda":
        yield found
        found.append(0)
        return
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_stats(device)["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found.append(torch.cuda.memory_stats(device)["allocation.all.allocated"] - before)


def check_no_waiting(device: torch.device, sites: int, rows: int, dim: int, steps: int = 20) -> dict[str, int]:
    """Hold the statistics of many sites to no synchronisation and no allocation, once they are warm."""
    x, y = sample(rows, dim, torch.bfloat16, 0.0, device, 4), labels(rows, 2, device)
    moments = [Moments(dim, 2, device=device) for _ in range(sites)]

    def step() -> None:
        for one in moments:
            one.update(x, y)

    for _ in range(2 + moments[0]._sums.rows_on_device().rows // rows):  # until each has met a full block
        step()
    with no_waiting(device) as allocated:
        for _ in range(steps):
            step()
    assert allocated == [0], f"{allocated[0]} allocations in {steps} steps of {sites} sites"
    return {"sites": sites, "steps": steps, "allocations": allocated[0], "synchronisations": 0}


def check_record(device: torch.device, sites: int, rows: int, dim: int, steps: int = 8) -> dict[str, int]:
    """Hold `record`, whose products are taken on a side stream, to the same, and to the sums of its rows by hand."""
    model = nn.Sequential(*(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)) for _ in range(sites)))
    model = model.to(device, torch.bfloat16).requires_grad_(False)
    x, y = sample(rows, dim, torch.bfloat16, 0.0, device, 5)[None], labels(rows, 2, device)[None]
    for _ in range(2):
        model(x)
    with no_waiting(device) as alone:
        for _ in range(steps):
            model(x)
    warm, by_hand = 0, Moments(dim, 2, device=device)
    with record(model, [f"{index}.0" for index in range(sites)], num_classes=2) as moments:
        while not warm or warm * rows < 2 * by_hand._sums.rows_on_device().rows:
            model(x, concept_labels=y)
            warm += 1
        with no_waiting(device) as allocated:
            for _ in range(steps):
                model(x, concept_labels=y)
    assert allocated == alone, f"{allocated[0]} allocations in {steps} passes, {alone[0]} without statistics"
    first = model[0].get_submodule("0")(x)
    for _ in range(warm + steps):
        by_hand.update(first, y)
    for name, tensor in by_hand._flush().tensors().items():
        assert torch.equal(tensor, getattr(moments["0.0"]._flush(), name)), f"{name} differs from rows added by hand"
    return {"sites": sites, "passes": steps, "allocations": allocated[0] - alone[0], "synchronisations": 0}


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
