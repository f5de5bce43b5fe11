"""One block of rows added to the sums: which kernels run on it, in what order, with which scratch memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import configs
from .fold import fold
from .ingest import ingest, locate
from .order import LEFT_OUT, count_segments, place_rows, scan_counts, stage_labels, stage_rows, stage_targets
from .targets import add_cross, add_targets, locate_targets
from .update import add_partials, rank_update

COUNTERS = ("infinite", *LEFT_OUT)  # of rows that are left out, by reason
LABEL_ROWS, COPY_ROWS, INGEST_ROWS, FOLD_ROWS = 512, 8, 16, 8
INGEST_COLUMNS, INGEST_STAGES = 128, 5
LOCATE_COLUMNS, ADD_ROWS, COUNT_ROWS = 16, 16, 2048


class Strided(NamedTuple):
    """Rows as they lie in memory: row i of `tensor` stands at (i // length) outer + (i % length) inner."""

    tensor: Tensor
    outer: int
    inner: int
    column: int

    def fetched(self, begin: int, length: int, rows: int, dim: int) -> Tensor | None:
        """Return rows begin..begin+rows as a view (rows, dim) that the tensor memory accelerator can read, or None."""
        stride = self.inner if length > 1 else self.outer
        offset = begin // length * self.outer + begin % length * self.inner
        apart = begin // length != (begin + rows - 1) // length and self.outer != length * stride
        size = self.tensor.element_size()
        aligned = (self.tensor.data_ptr() + offset * size) % 16 == stride * size % 16 == 0
        if apart or self.column != 1 or stride < dim or not aligned:
            return None
        return self.tensor.as_strided((rows, dim), (stride, 1), self.tensor.storage_offset() + offset)


class Batch(NamedTuple):
    """Rows x (..., length, dim) with labels or targets, a mask and weights, each with the strides that it has."""

    length: int
    x: Strided
    y: Strided
    mask: Strided | None
    weight: Strided | None


class Waiting(NamedTuple):
    """What is known of each row of a block."""

    codes: Tensor  # (rows,) int32: its class, or why it is left out
    weights: Tensor  # (rows,) float64
    targets: Tensor  # (rows, targets) float64


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **sizes: Any) -> None:
    """Launch a kernel; fused multiply-adds whatever the default of this release."""
    kernel[grid](*arguments, num_warps=warps, enable_fp_fusion=True, **sizes)


class BlockKernels:
    """The kernels and the scratch memory for blocks of one kind, shared by all statistics of that kind.

    Args:
        key: what these are known by.
        dim: columns.
        classes: 1 for real-valued targets.
        targets: width of the targets, or 0.
        per_class: a second moment for each class.
        config: how the product is taken.
        device: where everything lies.
        processors: multiprocessors of the device.
    """

    def __init__(
        self,
        key: tuple[Any, ...],
        dim: int,
        classes: int,
        targets: int,
        per_class: bool,
        config: configs.Update,
        device: torch.device,
        processors: int,
    ) -> None:
        self.key = key
        self.turns: Any = None  # of the streams that use the scratch memory, kept by the caller
        self.dim, self.classes, self.targets, self.per_class, self.config = dim, classes, targets, per_class, config
        self.width = width = -(-dim // configs.WIDTH) * configs.WIDTH
        self.rows = rows = block_rows(dim)
        self.groups = groups = classes if per_class else 1
        self.align = config.step if per_class else 1
        # With one more for places beyond the last row: a histogram on a GPU has no other way to leave them out.
        self.bins = max(configs.CODE_BINS, triton.next_power_of_2(classes + len(LEFT_OUT) + 1))
        self.chunk_room = rows // configs.CHUNK + min(classes, rows) + 1
        self.tiles = triangle_size(width // config.tile)
        self.splits = configs.split_count(self.tiles * groups, processors, rows)
        self.plane_rows = rows + config.step + (groups * config.step if per_class else 0)
        self.together = max(configs.PARTIAL_BYTES // (self.splits * self.tiles * config.tile**2 * 4), 1)
        self.together = min(self.together, groups)

        def room(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.counts = room(-(-rows // configs.SEGMENT), self.bins, dtype=torch.int32)
        self.order = room(rows, dtype=torch.int32)
        self.bad = room(1 + rows, dtype=torch.int32)
        self.as_is = room(1, dtype=torch.int32)
        self.starts, self.tile_starts, self.chunks = (room(classes + 1, dtype=torch.int32) for _ in range(3))
        self.shift, self.scale = room(width, dtype=torch.float32), room(width, dtype=torch.float32)
        self.tile = room(config.planes * self.plane_rows, width, dtype=config.dtype)
        self.sums = room(1 + targets, self.chunk_room, width, dtype=torch.float64)
        self.rest = room(self.chunk_room, width, dtype=torch.float32)
        self.low = room(self.chunk_room if config.planes == 2 else 1, width, dtype=torch.float32)
        self.group_weights = room(groups, dtype=torch.float64)
        self.group_sums, self.group_rest = (room(groups, width, dtype=torch.float64) for _ in range(2))
        self.group_low = room(groups, width, dtype=torch.float64)
        self.partial = room(self.together, self.splits, self.tiles, config.tile, config.tile, dtype=torch.float32)
        self.source: Any = self._describe(self.tile) if config.descriptor else self.tile
        # What it fetches beyond the ends of x is zero, as in the tile.
        self._may_fetch = config.descriptor and config.planes == 1 and not per_class

    def memory(self) -> list[Tensor]:
        """Return the scratch memory."""
        return [part for part in vars(self).values() if isinstance(part, Tensor)]

    def stage(self, batch: Batch, begin: int, count: int, first: int, waiting: Waiting) -> None:
        """Write what is known of rows begin..begin+count of a batch to places first.. of a block."""
        grid = (triton.cdiv(count, LABEL_ROWS),)
        y, mask, weight = batch.y, batch.mask or batch.y, batch.weight or batch.y
        launch(
            stage_labels,
            grid,
            *(y.tensor, mask.tensor, weight.tensor, waiting.codes, waiting.weights, begin, count, first, batch.length),
            *(y.outer, y.inner, mask.outer, mask.inner, weight.outer, weight.inner),
            CLASSES=self.classes,
            HAS_LABELS=not self.targets,
            HAS_MASK=batch.mask is not None,
            HAS_WEIGHT=batch.weight is not None,
            ROWS=LABEL_ROWS,
        )
        if self.targets:
            launch(
                stage_targets,
                grid,
                *(y.tensor, waiting.codes, waiting.targets, begin, count, first, batch.length, y.outer, y.inner),
                y.column,
                TARGETS=self.targets,
                ROWS=LABEL_ROWS,
            )

    def copy(self, batch: Batch, begin: int, count: int, first: int, block: Tensor) -> None:
        """Copy rows begin..begin+count of a batch to places first.. of a block (rows, dim)."""
        x, columns = batch.x, min(triton.next_power_of_2(self.dim), 512)
        launch(
            stage_rows,
            (triton.cdiv(count, COPY_ROWS), triton.cdiv(self.dim, columns)),
            *(x.tensor, block, begin, count, first, batch.length, x.outer, x.inner, x.column, self.dim),
            ROWS=COPY_ROWS,
            COLUMNS=columns,
        )

    def add(
        self,
        state: Any,
        x: Strided,
        begin: int,
        length: int,
        rows: int,
        waiting: Waiting,
        weighted: bool,
        left_out: Tensor,
    ) -> None:
        """Add rows begin..begin+rows of x, of which everything else is `waiting`, to the sums of a state."""
        self._order(waiting.codes, rows, left_out)
        source = (begin, length, x.outer, x.inner, x.column, self.dim, self.width)
        as_is = self._may_fetch and x.tensor.dtype == self.config.dtype and not weighted
        fetched = x.fetched(begin, length, rows, self.dim) if as_is else None
        self._locate(state, x.tensor, source, waiting, rows)
        chunk_programs = rows // configs.CHUNK + min(self.classes, rows) + 1
        for again in (0, 1):
            launch(
                ingest,
                (chunk_programs, self.width // INGEST_COLUMNS, 1 + self.targets),
                *(x.tensor, waiting.weights, waiting.targets, self.order, self.starts, self.tile_starts, self.chunks),
                *(self.bad, self.as_is, state.shift, state.target_shift, self.shift, self.scale, self.tile, self.sums),
                *(self.rest, self.low, *source, self.plane_rows, self.chunk_room, again, int(fetched is not None)),
                CLASSES=self.classes,
                CLASS_BINS=self.bins,
                TARGETS=self.targets,
                HAS_WEIGHT=weighted,
                PLANES=self.config.planes,
                AS_IS=as_is,
                ALIGN=self.align,
                STEP=self.config.step,
                CHUNK=configs.CHUNK,
                ROWS=INGEST_ROWS,
                COLUMNS=INGEST_COLUMNS,
                STAGES=INGEST_STAGES,
            )
        launch(
            fold,
            (self.classes + 1, self.width // 128),
            *(self.sums, self.rest, self.low, self.scale, waiting.weights, self.order, self.starts, self.chunks),
            *(self.bad, state.counts, state.weights, state.squared_weights, state.sums, left_out),
            *(self.group_weights, self.group_sums, self.group_rest, self.group_low),
            *(self.dim, self.width, self.chunk_room),
            CLASSES=self.classes,
            PER_CLASS=self.per_class,
            HAS_WEIGHT=weighted,
            PLANES=self.config.planes,
            LABEL_ROWS=COUNT_ROWS,
            ROWS=FOLD_ROWS,
            COLUMNS=128,
            warps=8,
        )
        if self.targets:
            self._add_targets(state, waiting, weighted)
        for group in range(0, self.groups, self.together):
            self._multiply(state, group, min(self.together, self.groups - group), fetched)

    def _describe(self, rows: Tensor) -> TensorDescriptor:
        """Return how the tensor memory accelerator reads rows."""
        return TensorDescriptor.from_tensor(rows, [self.config.step, self.config.tile])

    def _order(self, codes: Tensor, rows: int, left_out: Tensor) -> None:
        """Sort the rows by class."""
        segments = triton.cdiv(rows, configs.SEGMENT)
        bins, segment = self.bins, configs.SEGMENT
        codes_in_all = self.classes + len(LEFT_OUT)
        launch(
            count_segments,
            (segments,),
            *(codes, self.counts, self.bad, rows),
            CODES=codes_in_all,
            BINS=bins,
            SEGMENT=segment,
        )
        launch(
            scan_counts,
            (1,),
            *(self.counts, self.starts, self.tile_starts, self.chunks, left_out, self.as_is, segments),
            CLASSES=self.classes,
            BINS=bins,
            WIDE=min(bins, configs.CLASS_COLUMNS),
            SEGMENTS=triton.next_power_of_2(len(self.counts)),
            CHUNK=configs.CHUNK,
            ALIGN=self.align,
            warps=8,
        )
        launch(place_rows, (segments,), codes, self.counts, self.order, rows, BINS=bins, SEGMENT=segment)

    def _locate(self, state: Any, x: Tensor, source: tuple[int, ...], waiting: Waiting, rows: int) -> None:
        """Choose where the block is centred, and if it is the first, where the state is."""
        launch(
            locate,
            (self.width // LOCATE_COLUMNS,),
            *(x, self.order, self.starts, state.counts, state.shift, self.shift, self.scale, self.as_is, rows),
            *source,
            CLASSES=self.classes,
            CLASS_BINS=self.bins,
            THRESHOLD=self.config.threshold,
            MAX_SCALE=self.config.max_scale,
            ORDINARY=configs.ORDINARY,
            SAMPLES=configs.SAMPLES,
            COLUMNS=LOCATE_COLUMNS,
            warps=8,
        )
        if self.targets:
            launch(
                locate_targets,
                (self.targets,),
                *(waiting.targets, self.order, self.starts, state.counts, state.target_shift),
                TARGETS=self.targets,
                ROWS=LABEL_ROWS,
            )

    def _add_targets(self, state: Any, waiting: Waiting, weighted: bool) -> None:
        launch(
            add_targets,
            (self.targets, self.targets + 1),
            *(waiting.targets, waiting.weights, self.order, self.starts, self.bad, state.target_shift),
            *(state.target_sums, state.target_second),
            TARGETS=self.targets,
            HAS_WEIGHT=weighted,
            ROWS=LABEL_ROWS,
        )
        launch(
            add_cross,
            (self.width // 128, self.targets),
            *(self.sums, self.chunks, state.cross, self.dim, self.width, self.chunk_room),
            TARGETS=self.targets,
            ROWS=FOLD_ROWS,
            COLUMNS=128,
        )

    def _multiply(self, state: Any, first: int, groups: int, fetched: Tensor | None = None) -> None:
        """Add the products of some groups to their second moments; `fetched` are the rows themselves."""
        config = self.config
        launch(
            rank_update,
            (self.tiles, self.splits, groups),
            *(self.source, self.tile if fetched is None else self._describe(fetched), self.as_is, self.bad),
            *(self.tile_starts, self.partial, self.plane_rows, first, self.width),
            STRIDE=1 if self.per_class else self.classes,
            PLANES=config.planes,
            BLOCK=config.tile,
            STEP=config.step,
            PROMOTE=config.promote,
            STAGES=config.stages,
            DESCRIPTOR=config.descriptor,
            FETCH=fetched is not None,
            warps=config.warps,
        )
        launch(
            add_partials,
            (self.tiles, config.tile // ADD_ROWS, groups),
            *(self.partial, self.group_weights, self.group_sums, self.group_rest, self.group_low),
            *(state.shift, self.shift, self.scale, state.second, self.dim, self.width, first),
            PLANES=config.planes,
            SPLITS=self.splits,
            BLOCK=config.tile,
            ROWS=ADD_ROWS,
        )


def triangle_size(side: int) -> int:
    """Return the cells of a lower triangle with its diagonal."""
    return side * (side + 1) // 2


def block_rows(dim: int) -> int:
    """Return the rows of a block of some columns."""
    return configs.block_rows(-(-dim // configs.WIDTH) * configs.WIDTH)
