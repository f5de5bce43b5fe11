"""Moments of real-valued targets: their shift, their sums and their products, in float64."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate_targets(
    targets,  # (rows, TARGETS) float64
    order,
    starts,  # (2,) int32
    state_counts,  # (1,) int64
    target_shift,  # (TARGETS,) float64: written where the sums hold no rows
    TARGETS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Centre each target about its mean in the first block."""
    target = tl.program_id(0)
    if tl.load(state_counts) > 0:
        return
    rows = tl.load(starts + 1)
    total = tl.zeros((ROWS,), dtype=tl.float64)
    for begin in range(0, rows, ROWS):
        place = begin + tl.arange(0, ROWS)
        used = place < rows
        row = tl.load(order + place, mask=used, other=0)
        total += tl.load(targets + row.to(tl.int64) * TARGETS + target, mask=used, other=0.0)
    tl.store(target_shift + target, tl.sum(total, 0) / tl.maximum(rows, 1))


@triton.jit
def add_targets(
    targets,  # (rows, TARGETS) float64
    weights,  # (rows,) float64
    order,
    starts,
    bad,
    target_shift,  # (TARGETS,) float64
    target_sums,  # (TARGETS,) float64
    target_second,  # (TARGETS, TARGETS) float64
    TARGETS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add one product of two targets, or with the last program of a row the sum of one."""
    one, other = tl.program_id(0), tl.program_id(1)
    rows = tl.load(starts + 1)
    total = tl.zeros((ROWS,), dtype=tl.float64)
    shift = tl.load(target_shift + one)
    for begin in range(0, rows, ROWS):
        place = begin + tl.arange(0, ROWS)
        used = place < rows
        row = tl.load(order + place, mask=used, other=0)
        used = used & (tl.load(bad + 1 + row, mask=used, other=1) == 0)
        value = tl.load(targets + row.to(tl.int64) * TARGETS + one, mask=used, other=0.0) - shift
        if HAS_WEIGHT:
            value = value * tl.load(weights + row, mask=used, other=0.0)
        if other < TARGETS:
            second = tl.load(targets + row.to(tl.int64) * TARGETS + other, mask=used, other=0.0)
            value = value * (second - tl.load(target_shift + other))
        total += tl.where(used, value, 0.0)
    goal = target_second + one * TARGETS + other
    if other == TARGETS:
        goal = target_sums + one
    tl.store(goal, tl.load(goal) + tl.sum(total, 0))


@triton.jit(do_not_specialize=["chunk_room"])
def add_cross(
    sums,  # (1 + TARGETS, chunk_room, width) float64, of `ingest`
    chunks,  # (2,) int32
    cross,  # (dim, TARGETS) float64
    dim,
    width,
    chunk_room,
    TARGETS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the sums of x times one target, chunk by chunk."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    target = tl.program_id(1)
    here = column < dim
    last = tl.load(chunks + 1)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float64)
    for begin in range(0, last, ROWS):
        chunk = begin + tl.arange(0, ROWS)
        place = ((1 + target).to(tl.int64) * chunk_room + chunk)[:, None] * width + column[None, :]
        total += tl.load(sums + place, mask=(chunk < last)[:, None] & here[None, :], other=0.0)
    goal = cross + column * TARGETS + target
    tl.store(goal, tl.load(goal, mask=here, other=0.0) + tl.sum(total, 0), mask=here)
