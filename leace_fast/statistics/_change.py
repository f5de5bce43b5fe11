"""What a call does to some `Moments`: all of it at once at the end, or nothing, whatever happens meanwhile."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._accumulator import Accumulator
from ._at_once import Step, at_once
from ._block_sums import relative_error
from ._checks import check_rows, check_shapes
from ._draft import Draft
from ._group_sums import GroupSums
from ._kernels import GPU_ROW_DTYPES, serves
from ._rows import Rows


class Change:
    """Sums before a call and after it.

    Args:
        before: what the `Moments` hold.

    Attributes:
        after: what they are to hold.
    """

    def __init__(self, before: Accumulator) -> None:
        self.before, self.after = before, before.twin()
        self._draft: Draft | None = None
        self._copies: list[Step] = []  # rows that go where others wait that are still counted

    def add(self, x: Tensor, y: Tensor | None, mask: Any, weight: Any, groups: Any) -> Change:
        """Add rows, as `Moments.update`, and return self."""
        self.after.check_grouped(groups is not None)
        if serves(self.after.device) and getattr(x, "dtype", None) in GPU_ROW_DTYPES:
            self._add_on_device(x, y, mask, weight, groups)
            return self
        if self.before.on_device is not None:  # what waits on the device comes before rows that it does not take
            self.before.read_device()
            self.after = self.before.twin()
        after = self.after
        rows, skipped = check_rows(after.kind, after.device, x, y, mask, weight, groups)
        count, begin, block = rows.used, 0, after.block_rows
        if not count:
            after.tally = after.tally.with_rows(skipped, 0.0)
            return self
        error = 0.0 if rows.x.dtype == torch.float64 else relative_error(rows.x)
        after.tally = after.tally.with_rows(skipped, error)
        if rows.groups is not None:
            self._begin_groups()
        while begin < count:
            if not after.staged and count - begin >= block:
                self._absorb(rows.part(begin, begin + block))
                begin += block
                continue
            if after.staged is None or not after.staged.fits(rows):
                self.flush()
                after.staged = rows.staging(block)
            begin += self._stage(after.staged, rows, begin)
            if after.staged.is_full:
                self.flush()
        return self

    def flush(self) -> Change:
        """Take in the rows that wait, and return self."""
        if self.after.staged:
            self._absorb(self.after.staged.filled())
            self.after.staged = self.after.staged.with_used(0)
        return self

    def settled(self) -> Accumulator:
        """Return the sums after the call, beside those before it."""
        if self._draft is not None:
            self.after.state = self._draft.settled()
        if self.after.groups is not None and self.after.groups is not self.before.groups:
            self.after.groups = self.after.groups.settled()
        return self.after

    def commit(self, owner: Any) -> None:
        """Put the sums after the call in the place of those before it, as the attribute `_sums` of an owner."""
        steps = self.steps(owner, alone=True)
        if len(steps) == 1:
            owner._sums = self.after
            return
        at_once(steps)
        if owner._sums is not self.after and self._draft is not None:
            self._draft.settled()  # a kernel refused the rows, before anything was done
            at_once(self.steps(owner, alone=True))

    def steps(self, owner: Any, *, alone: bool) -> list[Step]:
        """Return what puts the sums in their place; if others come before, no kernel may refuse its rows."""
        after, products, groups = self.after, [], []
        if self._draft is not None:
            after.state, products = self._draft.state, self._draft.steps(alone)
        if after.groups is not None and after.groups is not self.before.groups:
            groups = after.groups.steps()
        return [*products, *self._copies, *groups, partial(setattr, owner, "_sums", after)]

    # ------------------------------------------------------------ internal

    def _absorb(self, rows: Rows) -> None:
        if self._draft is None:
            self._draft = Draft(self.after.state)
        self._draft.absorb(rows.x, rows.labels, rows.targets, rows.weight)
        self._absorb_groups(rows, self._draft.state.shift)

    def _begin_groups(self) -> None:
        after = self.after
        if after.groups is None:
            after.groups = GroupSums(after.kind.dim, after.kind.num_classes or 1, after.device)

    def _absorb_groups(self, rows: Rows, shift: Tensor) -> None:
        groups = self.after.groups
        if groups is not None and rows.groups is not None and rows.labels is not None:
            if groups is self.before.groups:
                groups = self.after.groups = groups.draft()
            groups.add(rows.x, rows.labels, rows.groups, rows.weight, shift)

    def _stage(self, here: Rows, rows: Rows, begin: int) -> int:
        """Copy rows from `begin` on to where others wait, until that is full; return how many."""
        count = min(here.room, rows.used - begin)
        copies, waits = here.copying(rows, begin, count), self.before.staged
        if waits is not None and waits.x is here.x and here.used < waits.used:
            self._copies += copies
        else:
            for copy in copies:
                copy()
        self.after.staged = here.with_used(here.used + count)
        return count

    # ------------------------------------------------------------- on a GPU

    def _add_on_device(self, x: Tensor, y: Any, mask: Any, weight: Any, groups: Any) -> None:
        """Add rows by the kernels, in place; with groups this waits for the device, as these have to be known here."""
        after = self.after
        waiting = after.rows_on_device()
        waiting.check_whole()
        if groups is None:
            parts = check_shapes(after.kind, x, y, mask, weight)
            self._copies.append(waiting.begin_change())
            waiting.add(after.state, *parts)
            after.tally = after.tally.with_rows(0, waiting.relative_error)
            return
        rows, skipped = check_rows(after.kind, after.device, x, y, mask, weight, groups)
        self._begin_groups()
        after.tally = after.tally.with_rows(skipped, 0.0)
        if len(rows) and rows.labels is not None:
            self._copies.append(waiting.begin_change())
            waiting.add(after.state, rows.x, rows.labels, None, rows.weight)
            after.tally = after.tally.with_rows(0, waiting.relative_error)
            if after.state.is_empty:
                waiting.flush(after.state)
            self._absorb_groups(rows, after.state.shift)
