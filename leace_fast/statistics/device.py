"""Rows on their way into a `State` on a GPU: staged there, and added block by block by the Triton kernels.

Nothing here waits for the device, and nothing is allocated once batches of each kind have passed. What can only be seen
in the data (labels out of range, rows that are not finite) is left out and counted there, until somebody asks.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .state import State

if TYPE_CHECKING:
    from ..triton_kernels.block import BlockKernels, Strided

Precision = Literal["low", "high", "ieee"]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DEVICES = ["cuda"]  # tests add the CPU, where Triton's interpreter runs the kernels
# One set of scratch memory for all statistics of a kind: they use it one after the other.
_KERNELS: WeakValueDictionary[tuple[Any, ...], BlockKernels] = WeakValueDictionary()


def serves(device: torch.device) -> bool:
    """Tell whether the kernels can run on a device."""
    return device.type in DEVICES and importlib.util.find_spec("triton") is not None


class DeviceRows:
    """Rows that wait for a full block of one `Moments` on a GPU.

    Blocks are cut by the number of the row, rows that are left out included, so that the bits of the sums do not depend
    on how the stream is cut into batches. Whole blocks are read where they lie; other rows are copied first.

    Args:
        dim, num_classes, target_dim, per_class: as in `Moments`; one class for real-valued targets.
        device: where everything lies.
        precision: how float32 rows are multiplied: `"low"` rounds them to bfloat16, `"high"` splits them into two of
            these, `"ieee"` is float32 throughout.
    """

    def __init__(
        self, dim: int, num_classes: int, target_dim: int, per_class: bool, device: torch.device, precision: Precision
    ) -> None:
        from ..triton_kernels.block import COUNTERS, Waiting, block_rows

        self.kind = (dim, num_classes, target_dim, per_class)
        self.device = device
        self.precision: Precision = precision
        self.rows, self.used = block_rows(dim), 0
        self.is_read = True  # nothing came since `flush` and `take_counts`
        self.relative_error = 0.0  # of what was multiplied so far
        zeros = functools.partial(torch.zeros, device=device)
        self._waiting = Waiting(
            codes=zeros(self.rows, dtype=torch.int32),
            weights=zeros(self.rows, dtype=torch.float64),
            targets=zeros(self.rows, target_dim, dtype=torch.float64),
        )
        self._counts = zeros(len(COUNTERS), dtype=torch.int64)
        self._block: Tensor | None = None  # (rows, dim): those that wait, of one dtype
        self._dtype, self._weighted = torch.bfloat16, False
        self._kernels: BlockKernels | None = None
        self._stream: Any = None

    def add(self, state: State, x: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None) -> None:
        """Add rows x (..., dim) with labels (...) or targets (..., t); shapes and dtypes were checked before."""
        from ..triton_kernels.block import Batch

        rows, lead = x.shape[:-1].numel(), x.ndim - 1
        if not rows:
            return
        if self.used and (x.dtype != self._dtype or (weight is not None) != self._weighted):
            self.flush(state)
        self._dtype, self._weighted, self.is_read = x.dtype, weight is not None, False
        with self._on_device() as kernels:
            batch = Batch(
                length=x.shape[-2] if lead else 1,
                x=self._strided(x, lead),
                y=self._strided(y, lead),
                mask=None if mask is None else self._strided(mask, lead),
                weight=None if weight is None else self._strided(weight, lead),
            )
            self.relative_error = max(self.relative_error, kernels.config.error)
            begin = 0
            while begin < rows:
                whole = not self.used and rows - begin >= self.rows
                taken = min(self.rows - self.used, rows - begin)
                kernels.stage(batch, begin, taken, self.used, self._waiting)
                if whole:
                    kernels.add(state, batch.x, begin, batch.length, taken, self._waiting, self._weighted, self._counts)
                else:
                    kernels.copy(batch, begin, taken, self.used, self._room())
                    self.used += taken
                begin += taken
                if self.used == self.rows:
                    self.flush(state)

    def flush(self, state: State) -> None:
        """Take in the rows that wait for a full block."""
        if not self.used:
            return
        with self._on_device() as kernels:
            rows, self.used = self.used, 0
            kernels.add(
                state, self._strided(self._room(), 1), 0, rows, rows, self._waiting, self._weighted, self._counts
            )

    def take_counts(self) -> dict[str, int]:
        """Return how many rows were left out since the last call, by reason; this waits for the device."""
        from ..triton_kernels.block import COUNTERS

        with self._on_device():
            counts = {str(name): int(count) for name, count in zip(COUNTERS, self._counts.tolist(), strict=True)}
            self._counts.zero_()
        self.is_read = not self.used
        return counts

    def copy(self) -> DeviceRows:
        """Return a buffer that shares nothing with this one but scratch memory."""
        twin = DeviceRows(*self.kind, self.device, self.precision)
        twin.used, twin.relative_error, twin.is_read = self.used, self.relative_error, self.is_read
        twin._dtype, twin._weighted = self._dtype, self._weighted
        with self._on_device():
            twin._waiting = self._waiting._make(part.clone() for part in self._waiting)
            twin._counts = self._counts.clone()
            twin._block = None if self._block is None or not self.used else self._block.clone()
            twin._stream = self._stream
        return twin

    # ------------------------------------------------------------ internal

    def _room(self) -> Tensor:
        """Return where rows of the current dtype wait."""
        if self._block is None or self._block.dtype != self._dtype:
            self._block = torch.empty(self.rows, self.kind[0], dtype=self._dtype, device=self.device)
        return self._block

    def _strided(self, part: Tensor, lead: int) -> Strided:
        """Return rows as they lie. Only those with more than two leading axes may have to be copied."""
        from ..triton_kernels.block import Strided

        part = part.detach().to(self.device, non_blocking=True)
        if part.dtype == torch.bool:
            part = part.view(torch.uint8)
        if lead > 2:
            part, lead = part.flatten(0, lead - 2), 2
        strides = part.stride()
        outer, inner = (0, 0, *strides[:lead])[-2:]
        return Strided(part, outer, inner, strides[-1] if len(strides) > lead else 0)

    def _find_kernels(self) -> BlockKernels:
        """Return the kernels for rows of the current dtype."""
        from ..triton_kernels.block import BlockKernels
        from ..triton_kernels.configs import update_config

        key = (*self.kind, self._dtype, self.precision, self.device)
        if self._kernels is None or self._kernels.key != key:
            found = _KERNELS.get(key)
            if found is None:
                cuda = self.device.type == "cuda"
                properties = torch.cuda.get_device_properties(self.device) if cuda else None
                capability = (properties.major, properties.minor) if properties else (9, 0)
                processors = properties.multi_processor_count if properties else 4
                config = update_config(self._dtype, self.precision, capability)
                found = BlockKernels(key, *self.kind, config, self.device, processors)
                _KERNELS[key] = found
            self._kernels = found
        return self._kernels

    @contextmanager
    def _on_device(self) -> Iterator[BlockKernels]:
        """Yield the kernels for the current dtype, on the current stream, after what other streams began with them."""
        if self.device.type != "cuda":
            yield self._find_kernels()
            return
        with torch.cuda.device(self.device):
            kernels, stream = self._find_kernels(), torch.cuda.current_stream()
            for earlier in {self._stream, kernels.stream} - {None, stream}:
                stream.wait_stream(earlier)
            self._stream = kernels.stream = stream
            yield kernels
