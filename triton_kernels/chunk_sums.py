"""Sums of chunks: what the chunks of a block wrote, added in order to the float64 sums."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sum_between(partial, first, last, column, inside, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the sum of rows first..last of `partial` (chunks, width), in float64."""
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float64)
    for begin in range(first, last, ROWS):
        chunk = begin + tl.arange(0, ROWS)
        cells = chunk.to(tl.int64)[:, None] * width + column[None, :]
        total += tl.load(partial + cells, mask=(chunk < last)[:, None] & inside[None, :], other=0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def count_rows(order, bad, weights, first, last, HAS_WEIGHT: tl.constexpr, ROWS: tl.constexpr):
    """Return number, weight and squared weight of the finite rows at places first..last, and how many are not."""
    count = tl.zeros((ROWS,), dtype=tl.int32)
    skipped = tl.zeros((ROWS,), dtype=tl.int32)
    weight = tl.zeros((ROWS,), dtype=tl.float64)
    square = tl.zeros((ROWS,), dtype=tl.float64)
    for begin in range(first, last, ROWS):
        place = begin + tl.arange(0, ROWS)
        used = place < last
        row = tl.load(order + place, mask=used, other=0)
        infinite = tl.load(bad + 1 + row, mask=used, other=1) == 1
        count += (infinite == 0).to(tl.int32)
        skipped += (used & infinite).to(tl.int32)
        w = (infinite == 0).to(tl.float64)
        if HAS_WEIGHT:
            w = tl.where(infinite, 0.0, tl.load(weights + row, mask=used, other=0.0))
        weight += w
        square += w * w
    return tl.sum(count, 0), tl.sum(weight, 0), tl.sum(square, 0), tl.sum(skipped, 0)


# In one piece: long by its parameters alone, of which a kernel takes each by itself.
@triton.jit(do_not_specialize=["chunk_room"])
def sum_chunks(
    sums,  # (1 + TARGETS, chunk_room, width) float64, of `ingest`
    rest,  # (chunk_room, width) float32
    low,  # (chunk_room, width) float32
    scale,  # (width,) float32
    weights,  # (rows,) float64
    order,
    starts,
    chunks,
    bad,
    state_counts,  # (CLASSES,) int64
    state_weights,  # (CLASSES,) float64
    state_squares,  # (CLASSES,) float64
    state_sums,  # (CLASSES, dim) float64
    left_out,  # int64; its first entry counts rows that are not finite
    group_weights,  # (groups,) float64, of this block
    group_sums,  # (groups, width) float64, of this block
    group_rest,  # (groups, width) float64: what the sums of the tile have beyond these, scaled back
    group_low,  # (groups, width) float64
    dim,
    width,
    chunk_room,
    CLASSES: tl.constexpr,
    PER_CLASS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    PLANES: tl.constexpr,
    LABEL_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the sums of one class to the state; the last program does so for the group of all classes."""
    group = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = column < dim
    inside = column < width
    whole = group == CLASSES
    first = tl.load(chunks + tl.where(whole, 0, group))
    last = tl.load(chunks + tl.where(whole, CLASSES, group + 1))
    total = sum_between(sums, first, last, column, inside, width, ROWS, COLUMNS)
    if whole == 0:
        goal = state_sums + group * dim + column
        tl.store(goal, tl.load(goal, mask=here, other=0.0) + total, mask=here)
    # One group is made of all classes, and many are the classes themselves.
    if whole != PER_CLASS:
        place = tl.where(whole, 0, group).to(tl.int64) * width + column
        factor = tl.load(scale + column, mask=inside, other=1.0).to(tl.float64)
        beyond = sum_between(rest, first, last, column, inside, width, ROWS, COLUMNS)
        tl.store(group_sums + place, total, mask=inside)
        tl.store(group_rest + place, beyond / factor, mask=inside)
        if PLANES == 2:
            squares = sum_between(low, first, last, column, inside, width, ROWS, COLUMNS)
            tl.store(group_low + place, squares / (factor * factor), mask=inside)
    if tl.program_id(1) == 0:
        begin = tl.load(starts + tl.where(whole, 0, group))
        end = tl.load(starts + tl.where(whole, CLASSES, group + 1))
        count, weight, square, skipped = count_rows(order, bad, weights, begin, end, HAS_WEIGHT, LABEL_ROWS)
        if whole:
            tl.store(left_out, tl.load(left_out) + skipped)
        else:
            tl.store(state_counts + group, tl.load(state_counts + group) + count)
            tl.store(state_weights + group, tl.load(state_weights + group) + weight)
            tl.store(state_squares + group, tl.load(state_squares + group) + square)
        if whole != PER_CLASS:
            tl.store(group_weights + tl.where(whole, 0, group), weight)
