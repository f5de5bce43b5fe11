"""Symmetric rank-N update: the lower triangle of T'T, for prepared rows T (rows, width) of one group or of many."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def triangle(index):
    """Return (i, j), j <= i, of the index-th tile of a lower triangle, counted row by row."""
    i = ((tl.sqrt(8.0 * index + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root is rounded: at most one row off.
    i = tl.where(i * (i + 1) // 2 > index, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= index, i + 1, i)
    return i, index - i * (i + 1) // 2


@triton.jit
def load_tile(tile, row, column, width, STEP: tl.constexpr, BLOCK: tl.constexpr, DESCRIPTOR: tl.constexpr):
    """Return rows row..row+STEP of columns column..column+BLOCK; the buffer is padded, so nothing is masked."""
    if DESCRIPTOR:
        return tile.load([row, column])
    else:
        rows = row + tl.arange(0, STEP)
        columns = column + tl.arange(0, BLOCK)
        return tl.load(tile + rows.to(tl.int64)[:, None] * width + columns[None, :])


@triton.jit
def multiply(
    tile,
    begin,
    steps,
    left,
    right,
    plane_rows,
    width,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    PROMOTE: tl.constexpr,
    STAGES: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Return the product of columns left.. and right.. of some steps of rows.

    A tensor core's float32 accumulator may round toward zero, so that what it holds falls behind as rows go by: every
    PROMOTE rows it is added to a second one, by an ordinary float32 addition, and starts anew. One loop, not two: the
    loads stay ahead across that addition.
    """
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    inner = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    # Of two planes: high'high + low'high + high'low, one product a turn.
    PRODUCTS: tl.constexpr = 3 if PLANES == 2 else 1
    for step in tl.range(0, PRODUCTS * steps, num_stages=STAGES):
        row = begin + step // PRODUCTS * STEP
        row_a, row_b = row, row
        if PLANES == 2:
            row_a += plane_rows * (step % PRODUCTS == 1)
            row_b += plane_rows * (step % PRODUCTS == 2)
        a = load_tile(tile, row_a, left, width, STEP, BLOCK, DESCRIPTOR)
        b = load_tile(tile, row_b, right, width, STEP, BLOCK, DESCRIPTOR)
        inner = tl.dot(tl.trans(a), b, inner, input_precision="ieee")
        if (step + 1) % (PROMOTE // STEP) == 0:
            total += inner
            inner = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    return total + inner


@triton.jit(do_not_specialize=["plane_rows", "group_begin"])
def rank_update(
    tile,  # (planes * plane_rows, width) pointer, or tensor descriptor with blocks (STEP, BLOCK)
    x,  # with FETCH, tensor descriptor of the rows themselves with the same blocks, zero beyond its ends
    as_is,  # (1,) int32: whether the tile would hold the rows as they are
    bad,  # int32: whether any row is not finite, so that the tile was written after all
    tile_starts,  # (groups * STRIDE + 1,) int32: rows of group g are those from entry g STRIDE to entry (g + 1) STRIDE
    partial,  # (groups, splits, tiles, BLOCK, BLOCK) float32
    plane_rows,
    group_begin,
    width,
    STRIDE: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    PROMOTE: tl.constexpr,
    STAGES: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    FETCH: tl.constexpr,
):
    """Write one tile of the product over one split of the rows of one group."""
    index, split, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(1)
    i, j = triangle(index)
    begin = tl.load(tile_starts + (group_begin + group) * STRIDE)
    steps = tl.cdiv(tl.load(tile_starts + (group_begin + group + 1) * STRIDE) - begin, STEP)
    share = tl.cdiv(steps, splits)
    begin += split * share * STEP
    steps = tl.minimum(share, steps - split * share)
    left, right = i * BLOCK, j * BLOCK
    source = tile
    if FETCH:
        if (tl.load(as_is) == 1) & (tl.load(bad) == 0):
            source = x
    total = multiply(
        source, begin, steps, left, right, plane_rows, width, PLANES, BLOCK, STEP, PROMOTE, STAGES, DESCRIPTOR
    )
    place = ((group * splits + split) * tl.num_programs(0) + index).to(tl.int64) * BLOCK * BLOCK
    cells = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(partial + place + cells, total)


@triton.jit
def tile_sums(group_sums, group_rest, state_shift, shift, weight, column, inside, here):
    """Return the sums of some columns about the state's shift, and those of the very tile that was multiplied."""
    total = tl.load(group_sums + column, mask=inside, other=0.0)
    between = tl.load(state_shift + column, mask=here, other=0.0)
    between -= tl.load(shift + column, mask=inside, other=0.0).to(tl.float64)
    return total, total + weight * between + tl.load(group_rest + column, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["group_begin"])
def add_partials(
    partial,  # (groups, splits, tiles, BLOCK, BLOCK) float32, of `rank_update`
    group_weights,  # (groups,) float64, of this block, of `sum_chunks`
    group_sums,  # (groups, width) float64
    group_rest,  # (groups, width) float64
    group_low,  # (groups, width) float64
    state_shift,  # (dim,) float64
    shift,  # (width,) float32
    scale,  # (width,) float32
    state_second,  # (groups, dim, dim) float64
    dim,
    width,
    group_begin,
    PLANES: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add the products of all splits, in their order, to the float64 second moment about the state's shift.

    The product was taken about the block's own shift: it is centred with the sums of the very tile that was multiplied,
    then moved with the exact sums (Chan, Golub and LeVeque 1983).
    """
    index, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    tiles = tl.num_programs(0)
    i, j = triangle(index)
    local = part * ROWS + tl.arange(0, ROWS)
    row, column = i * BLOCK + local, j * BLOCK + tl.arange(0, BLOCK)
    cells = local[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    product = tl.zeros((ROWS, BLOCK), dtype=tl.float64)
    for split in range(SPLITS):
        product += tl.load(partial + ((group * SPLITS + split) * tiles + index) * BLOCK * BLOCK + cells).to(tl.float64)
    product /= tl.load(scale + row).to(tl.float64)[:, None]
    product /= tl.load(scale + column).to(tl.float64)[None, :]

    group += group_begin
    weight = tl.load(group_weights + group)
    group_sums += group * width
    group_rest += group * width
    above, across = row < dim, column < dim
    exact_i, rest_i = tile_sums(group_sums, group_rest, state_shift, shift, weight, row, row < width, above)
    exact_j, rest_j = tile_sums(group_sums, group_rest, state_shift, shift, weight, column, column < width, across)
    product += (exact_i[:, None] * exact_j[None, :] - rest_i[:, None] * rest_j[None, :]) / weight
    if PLANES == 2:
        low = tl.load(group_low + group * width + column)
        product += tl.where(row[:, None] == column[None, :], low[None, :], 0.0)
    goal = state_second + group * dim * dim + row.to(tl.int64)[:, None] * dim + column[None, :]
    used = above[:, None] & across[None, :]
    if weight > 0:
        tl.store(goal, tl.load(goal, mask=used, other=0.0) + product, mask=used)
