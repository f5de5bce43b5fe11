"""Rows on their way to a block: what is known of each is written down, and rows that must wait are copied."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from .launches import Prepared
from .order import stage_labels, stage_rows, stage_targets
from .rows import Batch, Waiting
from .scratch import Sizes

LABEL_ROWS, COPY_ROWS, COPY_COLUMNS = 512, 8, 512  # of a program


class Staging:
    """The kernels that take rows of batches over, for blocks of one kind."""

    def __init__(self, sizes: Sizes, fixed: dict[str, Any]) -> None:
        columns = min(triton.next_power_of_2(sizes.dim), COPY_COLUMNS)
        self._column_programs = triton.cdiv(sizes.dim, columns)
        self._has_targets = sizes.targets > 0
        self._labels = Prepared(stage_labels, fixed, HAS_LABELS=not sizes.targets, ROWS=LABEL_ROWS)
        self._targets = Prepared(stage_targets, fixed, ROWS=LABEL_ROWS)
        self._rows = Prepared(stage_rows, fixed, ROWS=COPY_ROWS, COLUMNS=columns)

    def stage(self, batch: Batch, begin: int, count: int, first: int, waiting: Waiting) -> None:
        """Write what is known of rows begin..begin+count of a batch to places first.. of a block."""
        y, mask, weight = batch.y, batch.mask or batch.y, batch.weight or batch.y
        grid = (triton.cdiv(count, LABEL_ROWS),)
        self._labels(
            grid,
            y=y.tensor,
            mask=mask.tensor,
            weight=weight.tensor,
            codes=waiting.codes,
            weights=waiting.weights,
            begin=begin,
            count=count,
            first=first,
            length=batch.length,
            y_outer=y.outer,
            y_inner=y.inner,
            m_outer=mask.outer,
            m_inner=mask.inner,
            w_outer=weight.outer,
            w_inner=weight.inner,
            IGNORE=batch.ignore,
            HAS_MASK=batch.mask is not None,
            HAS_WEIGHT=batch.weight is not None,
        )
        if self._has_targets:
            self._targets(
                grid,
                z=y.tensor,
                codes=waiting.codes,
                targets=waiting.targets,
                begin=begin,
                count=count,
                first=first,
                length=batch.length,
                z_outer=y.outer,
                z_inner=y.inner,
                z_column=y.column,
            )

    def copy(self, batch: Batch, begin: int, count: int, first: int, block: Tensor) -> None:
        """Copy rows begin..begin+count of a batch to places first.. of a block (rows, dim)."""
        grid = triton.cdiv(count, COPY_ROWS), self._column_programs
        self._rows(grid, **batch.part(begin, count).arguments(), block=block, count=count, first=first)
