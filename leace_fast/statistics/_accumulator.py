"""Rows added up: into the sums block by block, and what does not fill a block waits, on the host or on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._block_sums import relative_error
from ._checks import check_rows, check_shapes
from ._device import DeviceRows
from ._group_sums import GroupSums
from ._kernels import GPU_ROW_DTYPES, serves
from ._kind import Kind
from ._rows import Rows
from ._state import State
from ._tally import Tally


class Accumulator:
    """Sums over rows, with the rows that still wait for a full block.

    Args:
        kind: what is summed.
        state: the sums to begin with; they say on which device everything lives.
        tally: what is known of their rows.
    """

    def __init__(self, kind: Kind, state: State, tally: Tally) -> None:
        self.kind, self.state, self.tally = kind, state, tally
        self.device = state.shift.device  # "cuda" is the GPU that was current, from now on
        self.groups: GroupSums | None = None  # once rows with groups came
        self.staged: Rows | None = None
        self.on_device: DeviceRows | None = None

    def add(
        self,
        x: Tensor,
        y: Tensor | None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Add rows, as `Moments.update`."""
        self.check_grouped(groups is not None)
        if serves(self.device) and getattr(x, "dtype", None) in GPU_ROW_DTYPES:
            if groups is not None:
                self._add_grouped(x, y, mask, weight, groups)
                return
            parts = check_shapes(self.kind, x, y, mask, weight)
            waiting = self.rows_on_device()
            waiting.add(self.state, *parts)
            self.tally.note_error(waiting.relative_error)
            return
        if self.on_device is not None:
            self.on_device.join(self.state)
        rows, skipped = check_rows(self.kind, self.device, x, y, mask, weight, groups)
        self._begin_groups(rows)
        self.tally.skipped += skipped
        if len(rows) and rows.x.dtype != torch.float64:
            self.tally.note_error(relative_error(rows.x))
        block, begin = self._block_rows, 0
        while begin < len(rows):
            if not self.staged and len(rows) - begin >= block:
                self._absorb(rows.part(begin, begin + block))
                begin += block
                continue
            if self.staged is None or not self.staged.fits(rows):
                self.flush()
                self.staged = rows.staging(block)
            begin += self.staged.take(rows, begin)
            if self.staged.is_full:
                self.flush()

    def flush(self) -> State:
        """Take in the rows that still wait, and return the sums of all.

        Raises:
            ValueError: rows were met on a device that were no labels, masks or weights.
        """
        if self.staged or self.on_device is not None or self.tally.mistaken:
            self._take_in()
        return self.state

    def settled(self) -> Accumulator:
        """Return this with all rows in the sums: itself if they are, else a copy."""
        if not self.staged and (self.on_device is None or self.on_device.is_read):
            return self
        settled = self.copy()
        settled.flush()
        return settled

    @torch.inference_mode(False)
    def copy(self) -> Accumulator:
        """Return one that shares nothing with this."""
        on_device = None if self.on_device is None else self.on_device.copy(self.state)
        twin = Accumulator(self.kind, self.state.copy(), self.tally.copy())
        twin.groups = None if self.groups is None else self.groups.copy()
        twin.staged = None if self.staged is None else self.staged.copy()
        twin.on_device = on_device
        return twin

    # ------------------------------------------------------------- on a GPU

    def rows_on_device(self) -> DeviceRows:
        """Return where rows wait on a GPU."""
        if self.on_device is None:
            self.on_device = DeviceRows(self.kind, self.device)
        return self.on_device

    @torch.inference_mode(False)
    def stage(self, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
        """Copy rows that the kernels can take; they do not count before `commit`, and are dropped by the next call."""
        self.check_grouped(False)
        parts = check_shapes(self.kind, x, y, mask)
        self.rows_on_device().stage(self.state, *parts)

    @torch.inference_mode(False)
    def commit(self) -> None:
        """Count what was staged last."""
        rows = self.rows_on_device()
        rows.commit(self.state)
        self.tally.note_error(rows.relative_error)

    def drop(self) -> None:
        """Forget what was staged and not committed."""
        if self.on_device is not None:
            self.on_device.pending = 0

    @torch.inference_mode(False)
    def read_device(self) -> None:
        """Take in what waits on the device, and what was met there; raise if that were no labels, masks or weights."""
        if self.on_device is not None and not self.on_device.is_read:
            self.on_device.flush(self.state)
            self.tally.take(self.on_device.take_counts(self.state))
        self.tally.check(self.kind)

    # ------------------------------------------------------------- internal

    @property
    def _block_rows(self) -> int:
        """Rows in a block: a function of the width alone, so that no batch size changes a bit."""
        return max(1024, min(2048, 2**21 // self.kind.dim))

    def _absorb(self, rows: Rows) -> None:
        self.state.absorb(rows.x, rows.labels, rows.targets, rows.weight)
        self._absorb_groups(rows)

    def _absorb_groups(self, rows: Rows) -> None:
        if self.groups is not None and rows.groups is not None and rows.labels is not None:
            self.groups.add(rows.x, rows.labels, rows.groups, rows.weight, self.state.shift)

    def _add_grouped(self, x: Tensor, y: Any, mask: Any, weight: Any, groups: Tensor) -> None:
        """Add rows on a GPU with their groups; this waits for the device, as the groups have to be known here."""
        rows, skipped = check_rows(self.kind, self.device, x, y, mask, weight, groups)
        self._begin_groups(rows)
        self.tally.skipped += skipped
        if len(rows) and rows.labels is not None:
            waiting = self.rows_on_device()
            waiting.add(self.state, rows.x, rows.labels, None, rows.weight)
            self.tally.note_error(waiting.relative_error)
            if self.state.is_empty:
                waiting.flush(self.state)
            self._absorb_groups(rows)

    def _begin_groups(self, rows: Rows) -> None:
        if rows.groups is not None and self.groups is None and len(rows):
            self.groups = GroupSums(self.kind.dim, self.kind.num_classes or 1, self.device)

    def check_grouped(self, given: bool) -> None:
        """Raise ValueError for groups where others came without, or the reverse; or where there are no classes."""
        if given and self.kind.num_classes is None:
            raise ValueError("groups= needs classes: make the moments with num_classes")
        if given == (self.groups is not None) or not self.has_rows:
            return
        had = "no groups" if given else "groups"
        raise ValueError(f"the rows so far came with {had}: give groups= in every call of update, or in none")

    @property
    def has_rows(self) -> bool:
        """Whether rows came; on a GPU, also those that may turn out to be none."""
        waits = self.on_device is not None and not self.on_device.is_read
        return bool(self.staged) or waits or not self.state.is_empty

    @torch.inference_mode(False)
    def _take_in(self) -> None:
        if self.staged:
            self._absorb(self.staged.filled())
            self.staged.used = 0
        self.read_device()
