"""Ingest: the rows of a block by class, shifted and scaled into a tile to be multiplied, and their exact sums.

A chunk is up to CHUNK rows of one class, in the order in which they came. Every chunk and block of columns has its
own program and its own place to write to; `sum_chunks` adds what they wrote, in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .order import place_of


@triton.jit
def at_rank(keys, there, rank, FIRST: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the integer of a rank, 0 first, in each column of `keys`, by bisection; all are at least FIRST."""
    low = tl.full((COLUMNS,), FIRST, dtype=tl.int32)
    high = tl.full((COLUMNS,), 0x7FFFFFFF, dtype=tl.int32)
    for _ in range(32):
        middle = (low & high) + ((low ^ high) >> 1)
        enough = tl.sum(((keys <= middle[None, :]) & there).to(tl.int32), 0) > rank
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
        low = tl.minimum(low, high)
    return high


# In one piece: long by its parameters alone, of which a kernel takes each by itself.
@triton.jit(do_not_specialize=["rows_in_all", "begin", "length", "x_outer", "x_inner"])
def locate(
    x,
    order,  # int32: which row stands at each place
    starts,  # (CLASSES + 1,) int32
    state_counts,  # (CLASSES,) int64: rows that the sums hold already
    state_shift,  # (dim,) float64: written where they hold none
    shift,  # (width,) float32: of this block
    scale,  # (width,) float32: powers of two
    as_is,  # (1,) int32: cleared where a row is left out, or a column shifted or scaled
    rows_in_all,
    begin,
    length,
    x_outer,
    x_inner,
    x_column,
    dim,
    width,
    CLASSES: tl.constexpr,
    BINS: tl.constexpr,
    THRESHOLD: tl.constexpr,
    MAX_SCALE: tl.constexpr,
    ORDINARY: tl.constexpr,
    SAMPLES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Choose where each column is centred and how it is scaled, from rows spread evenly over the block.

    The shift is the median, so that a huge first token moves nothing; zero where it is less than THRESHOLD times the
    spread, for there x - shift would have to be rounded. The scale makes the spread about 1: no square leaves the range
    of float32. Columns that are not shifted and whose spread lies between 2^-ORDINARY and 2^ORDINARY stay as they are.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.load(starts + CLASSES)
    place = (tl.arange(0, SAMPLES).to(tl.int64) * rows // SAMPLES).to(tl.int32)
    row = tl.load(order + place, mask=place < rows, other=0)
    there = (place < rows)[:, None] & (column < dim)[None, :]
    at = place_of(begin + row, length, x_outer, x_inner)
    value = tl.load(x + at[:, None] + column.to(tl.int64)[None, :] * x_column, mask=there, other=0).to(tl.float32)
    there = there & (tl.abs(value) < float("inf"))
    count = tl.sum(there.to(tl.int32), 0)
    found = count > 0
    rank = tl.maximum(count - 1, 0) // 2

    # The bits of a float32, in the order of the numbers.
    bits = value.to(tl.int32, bitcast=True)
    key = at_rank(bits ^ ((bits >> 31) & 0x7FFFFFFF), there, rank, -0x80000000, COLUMNS)
    median = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    median = tl.where(found, median, 0.0)
    away = tl.abs(value - median[None, :])
    middle = at_rank(away.to(tl.int32, bitcast=True), there, rank, 0, COLUMNS).to(tl.float32, bitcast=True)
    spread = tl.where(found, middle, 0.0) * 1.4826  # of a normal distribution
    shifted = tl.abs(median) >= THRESHOLD * spread
    # Half of the values or more may be the same.
    spread = tl.where(spread > 0, spread, tl.sum(tl.where(there, away, 0.0), 0) / tl.maximum(count, 1))
    tl.store(shift + column, tl.where(shifted, median, 0.0), mask=column < width)
    size = tl.where(spread > 0, spread, tl.where(median != 0, tl.abs(median), 1.0))
    exponent = tl.minimum(tl.maximum((size.to(tl.int32, bitcast=True) >> 23) & 255, 1), 253)
    factor = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    unmoved = (shifted == 0) & (exponent > 127 - ORDINARY) & (exponent < 127 + ORDINARY)
    factor = tl.where(unmoved, 1.0, tl.minimum(factor, MAX_SCALE))
    tl.store(scale + column, factor, mask=column < width)
    if (tl.min((unmoved | (column >= dim)).to(tl.int32), 0) == 0) | (rows < rows_in_all):
        tl.store(as_is, 0)

    classes = tl.arange(0, BINS)
    held = tl.sum(tl.load(state_counts + classes, mask=classes < CLASSES, other=0), 0)
    if held == 0:
        tl.store(state_shift + column, median.to(tl.float64), mask=column < dim)


# In one piece: each row is read once, and the steps of the loop share a dozen tiles of it that are in registers.
@triton.jit(do_not_specialize=["begin", "length", "plane_rows", "chunk_room", "again", "fetched"])
def ingest(
    x,
    weights,  # (rows,) float64
    targets,  # (rows, TARGETS) float64
    order,
    starts,
    tile_starts,
    chunks,
    bad,  # (1 + rows,) int32: whether any row is not finite, and which
    as_is,  # (1,) int32: whether the tile would hold the rows as they are
    state_shift,  # (dim,) float64
    target_shift,  # (TARGETS,) float64
    shift,
    scale,
    tile,  # (planes * plane_rows, width)
    sums,  # (1 + TARGETS, chunk_room, width) float64: of w (x - state_shift), and the same times each target
    rest,  # (chunk_room, width) float32: what the sums of the tile have beyond those of x - shift, scaled
    low,  # (chunk_room, width) float32: squares that the product of a split tile leaves out
    begin,
    length,
    x_outer,
    x_inner,
    x_column,
    dim,
    width,
    plane_rows,
    chunk_room,
    again,
    fetched,  # whether the product can read x itself
    CLASSES: tl.constexpr,
    BINS: tl.constexpr,
    TARGETS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    PLANES: tl.constexpr,
    AS_IS: tl.constexpr,
    ALIGN: tl.constexpr,
    STEP: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write one chunk of the tile and its sums.

    Rows are taken as finite and those that are not are marked; where any was, a second run, `again`, leaves them out.
    A tile that would hold the rows as they are keeps their order, and is not written where the product can read them
    from x: the same bits either way.
    """
    if (again == 1) & (tl.load(bad) == 0):
        return
    chunk = tl.program_id(0)
    if chunk > tl.load(chunks + CLASSES):
        return
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.program_id(2)  # 0: the rows themselves; t: times target t - 1
    classes = tl.arange(0, BINS)
    # The last class that starts here or before: those before it with the same start have no rows.
    group = tl.sum((tl.load(chunks + classes, mask=classes <= CLASSES, other=0x7FFFFFFF) <= chunk).to(tl.int32), 0) - 1
    first = tl.load(starts + group) + (chunk - tl.load(chunks + group)) * CHUNK
    goal = tl.load(tile_starts + group) - tl.load(starts + group)
    end = first
    stop = first
    if group < CLASSES:
        last = tl.load(starts + group + 1)
        end = tl.minimum(first + CHUNK, last)
        stop = end
        if ALIGN > 1:
            if end == last:
                stop = tl.load(tile_starts + group + 1) - goal
    else:
        stop = first + STEP  # the product reads whole steps

    kept = 0
    if AS_IS:
        kept = tl.load(as_is) * (1 - again)
    written = tl.where(kept * fetched == 1, first, stop)
    here = column < dim
    inside = column < width
    centre = tl.load(shift + column, mask=inside, other=0.0)[None, :]
    factors = tl.load(scale + column, mask=inside, other=0.0)[None, :]
    origin = tl.load(state_shift + column, mask=here, other=0.0)[None, :]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float64)
    beyond = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    # Which row is next depends on the order: loads are on their way for some steps.
    for step in tl.range(first, stop, ROWS, num_stages=STAGES):
        place = step + tl.arange(0, ROWS)
        used = place < end
        row = tl.load(order + place, mask=used, other=0)
        at = place_of(begin + row, length, x_outer, x_inner)
        cells = at[:, None] + column.to(tl.int64)[None, :] * x_column
        value = tl.load(x + cells, mask=used[:, None] & here[None, :], other=0).to(tl.float32)
        infinite = tl.max((tl.abs(value) < float("inf")).to(tl.int32) ^ 1, 1) == 1
        tl.store(bad + 1 + row, infinite.to(tl.int32), mask=infinite)
        tl.store(bad + row * 0, infinite.to(tl.int32), mask=infinite)
        fine = used & (tl.load(bad + 1 + row, mask=used, other=1) * again == 0)
        keep = fine[:, None] & here[None, :]
        moved = tl.where(keep, (value - centre) * factors, 0.0)
        exact = tl.where(keep, value.to(tl.float64) - origin, 0.0)
        prepared = moved
        if HAS_WEIGHT:
            weight = tl.load(weights + row, mask=used, other=0.0)
            root = tl.sqrt(weight).to(tl.float32)[:, None]
            prepared = moved * root
            exact = exact * weight[:, None]
        if TARGETS > 0:
            if factor > 0:
                place_z = row.to(tl.int64) * TARGETS + factor - 1
                z = tl.load(targets + place_z, mask=used, other=0.0) - tl.load(target_shift + factor - 1)
                exact = exact * z[:, None]
        total += exact
        if factor == 0:
            narrow = prepared.to(tile.dtype.element_ty)
            taken = narrow.to(tl.float32)
            goal_row = tl.where(used & (kept == 1), row, goal + place)
            out = tile + goal_row.to(tl.int64)[:, None] * width + column[None, :]
            fits = (place < written)[:, None] & inside[None, :]
            tl.store(out, narrow, mask=fits)
            if PLANES == 2:
                lower = (prepared - taken).to(tile.dtype.element_ty)
                tl.store(out + plane_rows.to(tl.int64) * width, lower, mask=fits)
                lower = lower.to(tl.float32)
                taken += lower
                squares += lower * lower
            if HAS_WEIGHT:
                beyond += root * taken - weight.to(tl.float32)[:, None] * moved
            else:
                beyond += taken - moved
    if group < CLASSES:
        out = chunk.to(tl.int64) * width + column
        tl.store(sums + factor.to(tl.int64) * chunk_room * width + out, tl.sum(total, 0), mask=inside)
        if factor == 0:
            tl.store(rest + out, tl.sum(beyond, 0), mask=inside)
            if PLANES == 2:
                tl.store(low + out, tl.sum(squares, 0), mask=inside)
