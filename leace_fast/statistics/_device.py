"""Rows on their way into a `State` on a GPU: staged there, and added block by block by the Triton kernels.

Nothing here waits for the device, and nothing is allocated once batches of each kind have passed. What can only be seen
in the data (labels out of range, rows that are not finite) is left out and counted there, until somebody asks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _streams as streams
from ._at_once import Step
from ._kernels import kernels_for
from ._kind import Kind
from ._rows import IGNORE
from ._state import State
from ._streams import Turns

if TYPE_CHECKING:
    from ..triton_kernels.block import BlockKernels
    from ..triton_kernels.rows import Batch


class DeviceRows:
    """Rows that wait for a full block of one `Moments` on a GPU.

    Blocks are cut by the number of the row, rows that are left out included, so that the bits of the sums do not depend
    on how the stream is cut into batches. Whole blocks are read where they lie; other rows are copied first.

    Args:
        kind: that of the `Moments`.
        device: where everything lies.
    """

    def __init__(self, kind: Kind, device: torch.device) -> None:
        from ..triton_kernels.block import COUNTERS
        from ..triton_kernels.configs import block_rows
        from ..triton_kernels.rows import Waiting

        self.kind, self.device = kind, device
        self.rows, self.used = block_rows(kind.dim), 0
        self.pending = 0  # rows behind those, staged and not committed
        self.is_read = True  # nothing came since `flush` and `take_counts`
        self.relative_error = 0.0  # of what was multiplied so far
        zeros = functools.partial(torch.zeros, device=device)
        self._waiting = Waiting(
            codes=zeros(self.rows, dtype=torch.int32),
            weights=zeros(self.rows, dtype=torch.float64),
            targets=zeros(self.rows, kind.target_dim or 0, dtype=torch.float64),
        )
        self._counts = zeros(len(COUNTERS), dtype=torch.int64)
        self._block: Tensor | None = None  # (rows, dim): those that wait, of one dtype
        self._dtype, self._weighted = torch.bfloat16, False
        self._kernels: BlockKernels | None = None  # of that dtype, once they are needed
        self._turns = Turns(device)
        self._is_whole = True  # no change of these rows, or of their sums, was left half-way

    def begin_change(self) -> Step:
        """Begin to change rows and sums, in place; returns what says that this is done.

        Kernels are launched one after the other: what comes between, as Ctrl-C, leaves sums that are of no use.
        """
        self._is_whole = False
        return functools.partial(setattr, self, "_is_whole", True)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change rows and sums in place."""
        self.check_whole()
        done = self.begin_change()
        yield
        done()

    def check_whole(self) -> None:
        """Raise ValueError if a change was left half-way."""
        if not self._is_whole:
            raise ValueError(
                f"a call that added rows on {self.device} was interrupted, and part of the rows are in the sums: begin "
                "anew, or from a file or a copy of these moments"
            )

    def add(self, state: State, x: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None) -> None:
        """Add rows x (..., dim) with labels (...) or targets (..., t); shapes and dtypes were checked before."""
        rows = x.shape[:-1].numel()
        if not rows:
            return
        self._begin(state, x.dtype, weight is not None)
        with self._on_device(state) as kernels:
            batch, begin = self._batch(x, y, mask, weight), 0
            while begin < rows:
                taken = min(self.rows - self.used, rows - begin)
                if taken == self.rows:
                    kernels.staging.stage(batch, begin, taken, 0, self._waiting)
                    kernels.add(state, batch.part(begin, taken), self._waiting, self._weighted, self._counts)
                    self._took(kernels)
                else:
                    self._copy(kernels, batch, begin, taken)
                    self.commit(state)
                begin += taken

    def stage(self, state: State, x: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None) -> None:
        """Copy rows to where they wait, x free to change afterwards; they do not count before `commit`."""
        rows, self.pending = x.shape[:-1].numel(), 0
        if not rows:
            return
        self._begin(state, x.dtype, weight is not None)
        with self._on_device(state, scratch=False) as kernels:
            self._reserve(self.rows + rows)
            self._copy(kernels, self._batch(x, y, mask, weight), 0, rows)

    def commit(self, state: State) -> None:
        """Count the rows that were staged, and add the blocks that are full."""
        if not self.pending:
            return
        self.used, self.pending = self.used + self.pending, 0
        self._took(self._find_kernels())
        if self.used < self.rows:
            return
        with self._on_device(state) as kernels:
            whole = self.used // self.rows * self.rows
            for begin in range(0, whole, self.rows):
                self._add_waiting(kernels, state, begin, self.rows)
            self._move_up(whole)

    def flush(self, state: State) -> None:
        """Take in the rows that wait for a full block; not those that are only staged."""
        if not self.used:
            return
        with self._on_device(state) as kernels:
            self._add_waiting(kernels, state, 0, self.used)
            self._move_up(self.used)

    def join(self, state: State) -> None:
        """Let the current stream wait for what other streams began with these rows and their sums."""
        with self._on_device(state, scratch=False):
            pass

    def take_counts(self, state: State) -> dict[str, int]:
        """Return how many rows were left out since the last call, by reason; this waits for the device."""
        from ..triton_kernels.block import COUNTERS

        with self._on_device(state, scratch=False):
            counts = {str(name): int(count) for name, count in zip(COUNTERS, self._counts.tolist(), strict=True)}
            self._counts.zero_()
        self.is_read = not self.used
        return counts

    def copy(self, state: State) -> DeviceRows:
        """Return a buffer that shares nothing with this one but scratch memory; what is only staged is left out."""
        self.check_whole()
        twin = DeviceRows(self.kind, self.device)
        twin.used, twin.relative_error, twin.is_read = self.used, self.relative_error, self.is_read
        twin._dtype, twin._weighted = self._dtype, self._weighted
        with self._on_device(state, scratch=False), twin._turns.take(list):
            twin._waiting = self._waiting._make(part.clone() for part in self._waiting)
            twin._counts = self._counts.clone()
            twin._block = None if self._block is None or not self.used else self._block.clone()
        return twin

    # ------------------------------------------------------------ internal

    def _begin(self, state: State, dtype: torch.dtype, weighted: bool) -> None:
        """Go on to rows of another kind after those that wait."""
        if self.used and (dtype != self._dtype or weighted != self._weighted):
            self.flush(state)
        if dtype != self._dtype:
            self._kernels = None
        self._dtype, self._weighted = dtype, weighted

    def _took(self, kernels: BlockKernels) -> None:
        """Note that rows have come."""
        self.is_read, self.relative_error = False, max(self.relative_error, kernels.config.error)

    def _batch(self, x: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None) -> Batch:
        from ..triton_kernels.rows import Batch

        return Batch.of(x, y, mask, weight, IGNORE, self.device)

    def _copy(self, kernels: BlockKernels, batch: Batch, begin: int, count: int) -> None:
        """Copy rows of a batch behind those that wait."""
        kernels.staging.stage(batch, begin, count, self.used, self._waiting)
        kernels.staging.copy(batch, begin, count, self.used, self._room())
        self.pending = count

    def _add_waiting(self, kernels: BlockKernels, state: State, begin: int, rows: int) -> None:
        """Add rows begin..begin+rows of those that wait."""
        from ..triton_kernels.rows import Part, Strided

        waiting = self._waiting._make(part[begin:] for part in self._waiting)
        room = self._room()
        part = Part(Strided.of(room, 1, self.device), begin, len(room), rows)
        kernels.add(state, part, waiting, self._weighted, self._counts)

    def _move_up(self, count: int) -> None:
        """Forget the first rows of those that wait, and move the others to their place."""
        end, self.used = self.used + self.pending, self.used - count
        rest = end - count
        for part in (*self._waiting, self._room()) if rest else ():
            tail = part[count:end]
            part[:rest].copy_(tail if rest <= count else tail.clone())

    def _reserve(self, rows: int) -> None:
        """Make room for more rows than a block."""
        if rows <= len(self._waiting.codes):
            return
        old = (*self._waiting, self._room())
        *waiting, self._block = (part.new_empty(rows, *part.shape[1:]) for part in old)
        self._waiting = self._waiting._make(waiting)
        for part, before in zip((*self._waiting, self._block), old, strict=True):
            part[: self.used].copy_(before[: self.used])

    def _room(self) -> Tensor:
        """Return where rows of the current dtype wait."""
        if self._block is None or self._block.dtype != self._dtype:
            rows = len(self._waiting.codes)
            self._block = torch.empty(rows, self.kind.dim, dtype=self._dtype, device=self.device)
        return self._block

    def _memory(self, state: State) -> list[Tensor]:
        """Return what streams take turns with."""
        own = [*self._waiting, self._counts, *state.tensors().values()]
        return own if self._block is None else [*own, self._block]

    def _find_kernels(self) -> BlockKernels:
        """Return the kernels for rows of the current dtype."""
        if self._kernels is None:
            self._kernels = kernels_for(self.kind, self._dtype, self.device)
        return self._kernels

    @contextmanager
    def _on_device(self, state: State, scratch: bool = True) -> Iterator[BlockKernels]:
        """Yield the kernels for the current dtype, on the current stream, after what other streams began.

        Without scratch, what the kernels share may not be touched.
        """
        with streams.on_device(self.device), self._turns.take(lambda: self._memory(state)):
            kernels = self._find_kernels()
            with kernels.turns.take(kernels.memory) if scratch else nullcontext():
                yield kernels
