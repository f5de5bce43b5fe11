"""What the kernels of one kind of statistics share: how large everything is, and the memory that they write to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import triton
from torch import Tensor

from . import configs
from .order import LEFT_OUT


@dataclass(frozen=True)
class Sizes:
    """How large everything is for blocks of one kind."""

    dim: int
    classes: int  # 1 for real-valued targets
    targets: int  # width of the targets, or 0
    per_class: bool  # a second moment for each class
    width: int  # columns of the tile
    rows: int  # of a block
    groups: int  # with a second moment of their own
    align: int  # rows of the tile at a multiple of which a class starts
    bins: int  # of the histogram of codes
    chunk_room: int  # chunks, at most
    tiles: int  # of the product
    splits: int  # parts of the rows whose products are taken apart
    plane_rows: int  # rows of the tile
    together: int  # groups whose products are taken in one launch

    @classmethod
    def of(
        cls, dim: int, classes: int, targets: int, per_class: bool, config: configs.Update, processors: int
    ) -> Sizes:
        """Return the sizes for a way to multiply, on a device of some multiprocessors."""
        width, rows = configs.padded(dim), configs.block_rows(dim)
        groups = classes if per_class else 1
        tiles = configs.triangle_size(width // config.tile)
        splits = configs.split_count(tiles * groups, processors, rows)
        together = max(configs.PARTIAL_BYTES // (splits * tiles * config.tile**2 * 4), 1)
        return cls(
            dim=dim,
            classes=classes,
            targets=targets,
            per_class=per_class,
            width=width,
            rows=rows,
            groups=groups,
            align=config.step if per_class else 1,
            # With one more for places beyond the last row: a histogram on a GPU has no other way to leave them out.
            bins=max(configs.CODE_BINS, triton.next_power_of_2(classes + len(LEFT_OUT) + 1)),
            chunk_room=chunk_count(rows, classes),
            tiles=tiles,
            splits=splits,
            plane_rows=rows + config.step + (groups * config.step if per_class else 0),
            together=min(together, groups),
        )


@dataclass(frozen=True)
class Scratch:
    """Scratch memory by the names under which the kernels know it; they say what it holds."""

    counts: Tensor  # (segments, bins) int32
    order: Tensor  # (rows,) int32
    bad: Tensor  # (1 + rows,) int32
    as_is: Tensor  # (1,) int32
    starts: Tensor  # (classes + 1,) int32
    tile_starts: Tensor  # (classes + 1,) int32
    chunks: Tensor  # (classes + 1,) int32
    shift: Tensor  # (width,) float32
    scale: Tensor  # (width,) float32
    tile: Tensor  # (planes * plane_rows, width) of the dtype that is multiplied
    sums: Tensor  # (1 + targets, chunk_room, width) float64
    rest: Tensor  # (chunk_room, width) float32
    low: Tensor  # (chunk_room, width) float32, or (1, width) for one plane
    group_weights: Tensor  # (groups,) float64
    group_sums: Tensor  # (groups, width) float64
    group_rest: Tensor  # (groups, width) float64
    group_low: Tensor  # (groups, width) float64
    partial: Tensor  # (together, splits, tiles, tile, tile) float32

    @classmethod
    def of(cls, sizes: Sizes, config: configs.Update, device: torch.device) -> Scratch:
        """Return memory for blocks of some sizes, all zero."""

        def room(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        whole, single, double = torch.int32, torch.float32, torch.float64
        rows, width, chunks, classes = sizes.rows, sizes.width, sizes.chunk_room, sizes.classes
        return cls(
            counts=room(-(-rows // configs.SEGMENT), sizes.bins, dtype=whole),
            order=room(rows, dtype=whole),
            bad=room(1 + rows, dtype=whole),
            as_is=room(1, dtype=whole),
            starts=room(classes + 1, dtype=whole),
            tile_starts=room(classes + 1, dtype=whole),
            chunks=room(classes + 1, dtype=whole),
            shift=room(width, dtype=single),
            scale=room(width, dtype=single),
            tile=room(config.planes * sizes.plane_rows, width, dtype=config.dtype),
            sums=room(1 + sizes.targets, chunks, width, dtype=double),
            rest=room(chunks, width, dtype=single),
            low=room(chunks if config.planes == 2 else 1, width, dtype=single),
            group_weights=room(sizes.groups, dtype=double),
            group_sums=room(sizes.groups, width, dtype=double),
            group_rest=room(sizes.groups, width, dtype=double),
            group_low=room(sizes.groups, width, dtype=double),
            partial=room(sizes.together, sizes.splits, sizes.tiles, config.tile, config.tile, dtype=single),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it, by name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def chunk_count(rows: int, classes: int) -> int:
    """Return how many chunks some rows of some classes make, at most."""
    return rows // configs.CHUNK + min(classes, rows) + 1


def fixed_arguments(sizes: Sizes, scratch: Scratch, config: configs.Update) -> dict[str, Any]:
    """Return what means the same to every kernel, by the names of their parameters."""
    return {
        **scratch.tensors(),
        "dim": sizes.dim,
        "width": sizes.width,
        "chunk_room": sizes.chunk_room,
        "plane_rows": sizes.plane_rows,
        "CLASSES": sizes.classes,
        "TARGETS": sizes.targets,
        "PER_CLASS": sizes.per_class,
        "BINS": sizes.bins,
        "SEGMENT": configs.SEGMENT,
        "CHUNK": configs.CHUNK,
        "ALIGN": sizes.align,
        "PLANES": config.planes,
        "STEP": config.step,
        "BLOCK": config.tile,
    }
