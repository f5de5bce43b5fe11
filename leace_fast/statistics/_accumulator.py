"""Rows added up: into the sums block by block, and what does not fill a block waits, on the host or on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ._block_sums import relative_error
from ._checks import check_rows, check_shapes
from ._device import DeviceRows
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
        self.staged: Rows | None = None
        self.on_device: DeviceRows | None = None

    def add(self, x: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None) -> None:
        """Add rows, as `Moments.update`."""
        if serves(self.device) and getattr(x, "dtype", None) in GPU_ROW_DTYPES:
            parts = check_shapes(self.kind, x, y, mask, weight)
            waiting = self.rows_on_device()
            waiting.add(self.state, *parts)
            self.tally.note_error(waiting.relative_error)
            return
        if self.on_device is not None:
            self.on_device.join(self.state)
        rows, skipped = check_rows(self.kind, self.device, x, y, mask, weight)
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

    @torch.inference_mode(False)
    def _take_in(self) -> None:
        if self.staged:
            self._absorb(self.staged.filled())
            self.staged.used = 0
        self.read_device()
