"""What some `Moments` hold: sums, rows that wait for a full block, on the host or on a GPU, and a tally of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_shapes
from ._device import DeviceRows
from ._group_sums import GroupSums
from ._kind import Kind
from ._rows import Rows
from ._state import State
from ._tally import Tally


class Accumulator:
    """Sums over rows, with the rows that still wait for a full block.

    On the host none of it changes, but by a `Change`, which puts another in its place.

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

    def twin(self) -> Accumulator:
        """Return one that holds the same."""
        twin = Accumulator.__new__(Accumulator)
        vars(twin).update(vars(self))
        return twin

    @torch.inference_mode(False)
    def copy(self) -> Accumulator:
        """Return one that shares nothing with this."""
        on_device = None if self.on_device is None else self.on_device.copy(self.state)
        twin = Accumulator(self.kind, self.state.copy(), self.tally)
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
        with rows.changing():
            rows.commit(self.state)
            self.tally = self.tally.with_rows(0, rows.relative_error)

    def drop(self) -> None:
        """Forget what was staged and not committed."""
        if self.on_device is not None:
            self.on_device.pending = 0

    @torch.inference_mode(False)
    def read_device(self) -> None:
        """Take in what waits on the device, and what was met there; raise if that were no labels, masks or weights."""
        rows = self.on_device
        if rows is not None:
            rows.check_whole()
            if not rows.is_read:
                with rows.changing():
                    rows.flush(self.state)
                    self.tally = self.tally.with_counts(rows.take_counts(self.state))
        self.tally.check(self.kind)

    # -------------------------------------------------------------- queries

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

    @property
    def block_rows(self) -> int:
        """Rows in a block: a function of the width alone, so that no batch size changes a bit."""
        return max(1024, min(2048, 2**21 // self.kind.dim))
