"""Rows of a block by class: what is to be done with each row, and a stable counting sort without atomics.

Every row has a code: its class 0..k-1, or k and above for a reason to leave it out, in the order of `LEFT_OUT`.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEFT_OUT = ("ignored", "label", "mask", "weight", "target")  # the first is no mistake: IGNORE, masked or of weight zero
REASONS = tl.constexpr(len(LEFT_OUT))
MOST_WEIGHT = tl.constexpr(1e30)  # or one divided by it: products of weighted rows stay in the range of float32


@triton.jit
def place_of(row, length, outer, inner):
    """Return the offset of a row of a (..., length) tensor whose last two row axes have the strides outer, inner."""
    return (row // length).to(tl.int64) * outer + (row % length).to(tl.int64) * inner


@triton.jit(
    do_not_specialize=["begin", "count", "first", "length", "y_outer", "y_inner", "m_outer", "m_inner"]
    + ["w_outer", "w_inner"]
)
def stage_labels(
    y,
    mask,
    weight,
    codes,  # (rows,) int32
    weights,  # (rows,) float64
    begin,  # first row of y that is taken
    count,  # rows taken
    first,  # their place in the block
    length,
    y_outer,
    y_inner,
    m_outer,
    m_inner,
    w_outer,
    w_inner,
    CLASSES: tl.constexpr,
    IGNORE: tl.constexpr,  # the label of rows to leave out
    HAS_LABELS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write code and weight of each row. Labels of rows that a mask or a weight leaves out are not looked at."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = at < count
    row = begin + at
    code = tl.zeros((ROWS,), dtype=tl.int64)
    if HAS_LABELS:
        label = tl.load(y + place_of(row, length, y_outer, y_inner), mask=there, other=0).to(tl.int64)
        code = tl.where((label >= 0) & (label < CLASSES), label, tl.where(label == IGNORE, CLASSES, CLASSES + 1))
    if HAS_WEIGHT:
        w = tl.load(weight + place_of(row, length, w_outer, w_inner), mask=there, other=0).to(tl.float64)
        good = (w == 0) | ((w >= 1 / MOST_WEIGHT) & (w <= MOST_WEIGHT))
        code = tl.where(w == 0, CLASSES, tl.where(good, code, CLASSES + 3))
        tl.store(weights + first + at, tl.where(good, w, 0.0), mask=there)
    if HAS_MASK:
        m = tl.load(mask + place_of(row, length, m_outer, m_inner), mask=there, other=0).to(tl.int64)
        code = tl.where(m == 1, code, tl.where(m == 0, CLASSES, CLASSES + 2))
    tl.store(codes + first + at, code.to(tl.int32), mask=there)


@triton.jit(do_not_specialize=["begin", "count", "first", "length", "z_outer", "z_inner", "z_column"])
def stage_targets(
    z,
    codes,  # (rows,) int32, of `stage_labels`
    targets,  # (rows, TARGETS) float64
    begin,
    count,
    first,
    length,
    z_outer,
    z_inner,
    z_column,
    TARGETS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Copy real-valued targets; rows whose targets are not finite are left out."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = at < count
    place = place_of(begin + at, length, z_outer, z_inner)
    code = tl.load(codes + first + at, mask=there, other=0)
    for target in range(TARGETS):
        value = tl.load(z + place + target * z_column, mask=there, other=0).to(tl.float64)
        finite = tl.abs(value) < float("inf")
        code = tl.where((code == 0) & (finite == 0), 5, code)  # one group: k = 1
        tl.store(targets + (first + at).to(tl.int64) * TARGETS + target, tl.where(finite, value, 0.0), mask=there)
    tl.store(codes + first + at, code, mask=there)


@triton.jit(do_not_specialize=["begin", "count", "first", "length"])
def stage_rows(
    x,
    block,  # (rows, dim), of the dtype of x
    begin,
    count,
    first,
    length,
    x_outer,
    x_inner,
    x_column,
    dim,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Copy rows to where they wait for a full block."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = (at < count)[:, None] & (column < dim)[None, :]
    place = place_of(begin + at, length, x_outer, x_inner)
    value = tl.load(x + place[:, None] + column.to(tl.int64)[None, :] * x_column, mask=there)
    tl.store(block + (first + at).to(tl.int64)[:, None] * dim + column[None, :], value, mask=there)


@triton.jit(do_not_specialize=["rows"])
def count_segments(
    codes,
    counts,  # (segments, BINS) int32
    bad,  # (1 + rows,) int32, cleared: which rows are not finite, and before them whether any is
    rows,
    CODES: tl.constexpr,
    BINS: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Write how often each code stands in each segment."""
    segment = tl.program_id(0)
    at = segment * SEGMENT + tl.arange(0, SEGMENT)
    code = tl.load(codes + at, mask=at < rows, other=CODES)
    tl.store(counts + segment * BINS + tl.arange(0, BINS), tl.histogram(code, BINS))
    clean = tl.zeros((SEGMENT,), dtype=tl.int32)
    tl.store(bad + 1 + at, clean, mask=at < rows)
    tl.store(bad + at, clean, mask=at == 0)


@triton.jit(do_not_specialize=["segments"])
def scan_counts(
    counts,  # (segments, BINS) int32; becomes the place of the first row of each code in each segment
    starts,  # (CLASSES + 1,) int32: place of the first row of each class, and of those left out
    tile_starts,  # (CLASSES + 1,) int32: the same in the tile, where classes start at multiples of ALIGN
    chunks,  # (CLASSES + 1,) int32: number of the first chunk of each class, and of the chunks in all
    left_out,  # (1 + REASONS,) int64: rows that were not finite, then rows by reason; all that ever came
    as_is,  # (1,) int32: set, for `locate` to clear
    segments,
    CLASSES: tl.constexpr,
    BINS: tl.constexpr,
    WIDE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Turn counts into places: by class, then by segment."""
    place = 0
    tile_place = 0
    chunk = 0
    row = tl.arange(0, SEGMENTS)[:, None]
    for begin in range(0, BINS, WIDE):
        code = begin + tl.arange(0, WIDE)
        cells = row * BINS + code[None, :]
        here = tl.load(counts + cells, mask=row < segments, other=0)
        total = tl.sum(here, 0)
        start = place + tl.cumsum(total, 0) - total
        tl.store(counts + cells, start[None, :] + tl.cumsum(here, 0) - here, mask=row < segments)
        first = code <= CLASSES
        tl.store(starts + code, start, mask=first)
        room = (total + ALIGN - 1) // ALIGN * ALIGN
        tl.store(tile_starts + code, tile_place + tl.cumsum(room, 0) - room, mask=first)
        pieces = (total + CHUNK - 1) // CHUNK
        tl.store(chunks + code, chunk + tl.cumsum(pieces, 0) - pieces, mask=first)
        reason = (code >= CLASSES) & (code < CLASSES + REASONS)
        slot = left_out + 1 + code - CLASSES
        tl.store(slot, tl.load(slot, mask=reason, other=0) + total, mask=reason)
        place += tl.sum(total, 0)
        tile_place += tl.sum(room, 0)
        chunk += tl.sum(pieces, 0)
    tl.store(as_is, 1)


@triton.jit(do_not_specialize=["rows"])
def place_rows(
    codes,
    counts,  # (segments, BINS) int32, after `scan_counts`
    order,  # int32: which row stands at each place
    rows,
    BINS: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Write which row stands where: the rows of one class in the order in which they came."""
    segment = tl.program_id(0)
    local = tl.arange(0, SEGMENT)
    at = segment * SEGMENT + local
    there = at < rows
    code = tl.load(codes + at, mask=there, other=-1)
    same = (code[:, None] == code[None, :]) & (local[None, :] < local[:, None])
    rank = tl.sum(same.to(tl.int32), 1)
    first = tl.load(counts + segment * BINS + code, mask=there, other=0)
    tl.store(order + first + rank, at, mask=there)
