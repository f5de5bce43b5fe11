"""One block of rows added to the sums: which kernels run on it, and in what order."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from . import configs
from .chunk_sums import sum_chunks
from .ingest import ingest, locate
from .launches import Prepared
from .order import LEFT_OUT, count_segments, place_rows, scan_counts
from .product import Product
from .rows import Part, Waiting
from .scratch import Scratch, Sizes, chunk_count, fixed_arguments
from .staging import Staging
from .targets import add_cross, add_targets, locate_targets

COUNTERS = ("infinite", *LEFT_OUT)  # of rows that are left out, by reason
# Of a program.
LOCATE_COLUMNS, TARGET_ROWS = 16, 512
INGEST_ROWS, INGEST_COLUMNS, INGEST_STAGES = 16, 128, 5
COUNT_ROWS, SUM_ROWS, SUM_COLUMNS = 2048, 8, 128


class BlockKernels:
    """The kernels and the scratch memory for blocks of one kind, shared by all statistics of that kind.

    Args:
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
        dim: int,
        classes: int,
        targets: int,
        per_class: bool,
        config: configs.Update,
        device: torch.device,
        processors: int,
    ) -> None:
        self.turns: Any = None  # of the streams that use the scratch memory, kept by the caller
        self.config = config
        self.sizes = Sizes.of(dim, classes, targets, per_class, config, processors)
        self.scratch = Scratch.of(self.sizes, config, device)
        fixed = fixed_arguments(self.sizes, self.scratch, config)
        self.staging = Staging(self.sizes, fixed)
        self.product = Product(self.sizes, config, self.scratch.tile, fixed)
        self._prepare_order(fixed)
        self._prepare_sums(fixed)

    def _prepare_order(self, fixed: dict[str, Any]) -> None:
        self._count_segments = Prepared(count_segments, fixed, CODES=self.sizes.classes + len(LEFT_OUT))
        self._scan_counts = Prepared(
            scan_counts,
            fixed,
            warps=8,
            WIDE=min(self.sizes.bins, configs.CLASS_COLUMNS),
            SEGMENTS=triton.next_power_of_2(len(self.scratch.counts)),
        )
        self._place_rows = Prepared(place_rows, fixed)

    def _prepare_sums(self, fixed: dict[str, Any]) -> None:
        self._locate = Prepared(
            locate,
            fixed,
            warps=8,
            THRESHOLD=self.config.threshold,
            MAX_SCALE=self.config.max_scale,
            ORDINARY=configs.ORDINARY,
            SAMPLES=configs.SAMPLES,
            COLUMNS=LOCATE_COLUMNS,
        )
        self._ingest = Prepared(ingest, fixed, ROWS=INGEST_ROWS, COLUMNS=INGEST_COLUMNS, STAGES=INGEST_STAGES)
        self._sum_chunks = Prepared(
            sum_chunks, fixed, warps=8, LABEL_ROWS=COUNT_ROWS, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS
        )
        self._locate_targets = Prepared(locate_targets, fixed, ROWS=TARGET_ROWS)
        self._add_targets = Prepared(add_targets, fixed, ROWS=TARGET_ROWS)
        self._add_cross = Prepared(add_cross, fixed, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS)

    def memory(self) -> list[Tensor]:
        """Return the scratch memory."""
        return list(self.scratch.tensors().values())

    def add(self, state: Any, part: Part, waiting: Waiting, weighted: bool, left_out: Tensor) -> None:
        """Add rows, of which everything else is `waiting`, to the sums of a state."""
        self.sort(waiting.codes, part.count, left_out)
        as_is = self.product.may_fetch and part.x.tensor.dtype == self.config.dtype and not weighted
        fetched = part.fetched(self.sizes.dim) if as_is else None
        self.locate(state, part, waiting)
        chunks = chunk_count(part.count, self.sizes.classes)
        for again in (0, 1):
            self._ingest(
                (chunks, self.sizes.width // INGEST_COLUMNS, 1 + self.sizes.targets),
                **part.arguments(),
                weights=waiting.weights,
                targets=waiting.targets,
                state_shift=state.shift,
                target_shift=state.target_shift,
                again=again,
                fetched=int(fetched is not None),
                HAS_WEIGHT=weighted,
                AS_IS=as_is,
            )
        self._sum_chunks(
            (self.sizes.classes + 1, self.sizes.width // SUM_COLUMNS),
            weights=waiting.weights,
            state_counts=state.counts,
            state_weights=state.weights,
            state_squares=state.squared_weights,
            state_sums=state.sums,
            left_out=left_out,
            HAS_WEIGHT=weighted,
        )
        if self.sizes.targets:
            self._sum_targets(state, waiting, weighted)
        self.product.add_all(state, fetched)

    def sort(self, codes: Tensor, rows: int, left_out: Tensor) -> None:
        """Order the rows by class, and count those that are left out."""
        segments = triton.cdiv(rows, configs.SEGMENT)
        self._count_segments((segments,), codes=codes, rows=rows)
        self._scan_counts((1,), left_out=left_out, segments=segments)
        self._place_rows((segments,), codes=codes, rows=rows)

    def locate(self, state: Any, part: Part, waiting: Waiting) -> None:
        """Choose where the block is centred, and if it is the first, where the state is."""
        self._locate(
            (self.sizes.width // LOCATE_COLUMNS,),
            **part.arguments(),
            rows_in_all=part.count,
            state_counts=state.counts,
            state_shift=state.shift,
        )
        if self.sizes.targets:
            self._locate_targets(
                (self.sizes.targets,),
                targets=waiting.targets,
                state_counts=state.counts,
                target_shift=state.target_shift,
            )

    def _sum_targets(self, state: Any, waiting: Waiting, weighted: bool) -> None:
        """Add the sums and products of the targets, and their products with the rows."""
        targets = self.sizes.targets
        self._add_targets(
            (targets, targets + 1),
            targets=waiting.targets,
            weights=waiting.weights,
            target_shift=state.target_shift,
            target_sums=state.target_sums,
            target_second=state.target_second,
            HAS_WEIGHT=weighted,
        )
        self._add_cross((self.sizes.width // SUM_COLUMNS, targets), cross=state.cross)
