"""Fixed sizes of the kernels by device: nothing is tuned at run time, and no number of rows is compiled in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SEGMENT = 128  # rows that one program counts and places
CHUNK = 128  # rows of one class whose sums are formed together
WIDTH = 128  # tiles are padded to a multiple of this
CODE_BINS, CLASS_COLUMNS = 16, 32  # least histogram; codes whose counts are scanned together
ORDINARY = 32  # columns of a spread from 2^-32 to 2^32 need no scale
SAMPLES = 256  # rows of a block whose median centres it
PARTIAL_BYTES = 256 << 20  # of the products of several classes, at most
# Rows whose product takes as long as one more float32 partial sum of it: 2 d^2 operations a row against 8 bytes.
SPLIT_ROWS = 734


@dataclass(frozen=True)
class Update:
    """How one block is multiplied.

    Attributes:
        dtype: of the prepared rows.
        planes: 1, or 2 where a row is the sum of a high and a low part.
        tile: rows and columns of the product that a program holds.
        step: rows multiplied at a time.
        promote: rows summed in a tensor core's accumulator.
        stages: steps that are on their way at a time.
        warps: of a program.
        descriptor: whether tiles are fetched by the tensor memory accelerator.
        threshold: a column is centred where its median is this many times its spread.
        max_scale: largest factor of a column.
        error: relative rounding error of the correlation matrix.
    """

    dtype: torch.dtype
    planes: int
    tile: int
    step: int
    promote: int
    stages: int
    warps: int
    descriptor: bool
    threshold: float
    max_scale: float
    error: float


def update_config(dtype: torch.dtype, precision: str, capability: tuple[int, int]) -> Update:
    """Return how rows of a dtype are multiplied on a device of a compute capability."""
    # Later ones, of other product lines, have the shared memory of small devices.
    hopper = capability[0] in (9, 10)
    if dtype == torch.float32 and precision == "ieee":
        return Update(torch.float32, 1, 64, 16, 512, 3, 4, False, 0.0, 2.0**126, 2e-6)
    if dtype == torch.float32 and precision == "high":
        step, stages = (64, 4) if hopper else (32, 4)
        return Update(torch.bfloat16, 2, 128, step, 512, stages, 8, hopper, 0.0, 2.0**126, 2e-6)
    step, stages = (64, 4) if hopper else (32, 4)
    if dtype == torch.float16:
        # No difference of two of these leaves their range once it is divided by four.
        return Update(torch.float16, 1, 128, step, 512, stages, 8, hopper, 0.5, 0.25, 4e-6)
    threshold = 0.0 if dtype == torch.float32 else 0.5  # see docs/gpu.md
    return Update(torch.bfloat16, 1, 128, step, 512, stages, 8, hopper, threshold, 2.0**126, 4e-6)


def padded(dim: int) -> int:
    """Return how many columns a tile has for `dim` of them."""
    return -(-dim // WIDTH) * WIDTH


def block_rows(dim: int) -> int:
    """Return the rows of a block: some ten thousand, so that the float64 sums are seldom read and written."""
    return max(4096, min(2**26 // padded(dim) // 1024 * 1024, 32768))


def triangle_size(side: int) -> int:
    """Return the cells of a lower triangle with its diagonal."""
    return side * (side + 1) // 2


def split_count(tiles: int, processors: int, rows: int) -> int:
    """Return over how many parts of the rows a product of few tiles is spread, so that no processor waits."""

    def cost(splits: int) -> float:
        waves = -(-tiles * splits // processors)
        return waves * processors / (tiles * splits) + splits * SPLIT_ROWS / rows

    return min(range(1, 33), key=cost)
