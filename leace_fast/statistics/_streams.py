"""Streams of a GPU that use the same memory take turns, and threads too; work beside what is on the current stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

cuda: Any = torch.cuda  # tests put an emulation here


def has_streams(device: torch.device) -> bool:
    """Tell whether work on a device is queued."""
    return device.type == "cuda"


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make a device the current one, if it is a GPU."""
    if not has_streams(device):
        yield
        return
    with cuda.device(device):
        yield


class Turns:
    """The order in which streams use some memory: each waits for the one before, and for nothing that came later."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._lock = threading.RLock()
        self._last: Any = None
        self._event: Any = None

    @contextmanager
    def take(self, memory: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
        """Use the memory on the current stream of its device; it is not given away before that stream has done so."""
        with self._lock:
            if not has_streams(self.device):
                yield
                return
            stream = cuda.current_stream(self.device)
            if self._event is not None and self._last != stream:
                stream.wait_event(self._event)
            if self._last != stream:
                keep(memory(), stream)
            self._last = stream
            try:
                yield
            finally:
                # What is captured in a graph has no time of its own.
                if not cuda.is_current_stream_capturing():
                    self._event = self._event or cuda.Event()
                    self._event.record(stream)


def keep(memory: Iterable[Tensor], stream: Any) -> None:
    """Tell the allocator that a stream uses memory."""
    for tensor in memory:
        tensor.record_stream(stream)


class Aside:
    """One more stream for each device, for work that the current stream need not wait for before `join`."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Put work on the other stream; what it reads is ordered by `Turns`."""
        if not has_streams(device):
            yield
            return
        if device not in self._streams:
            self._streams[device] = cuda.Stream(device)
        with cuda.stream(self._streams[device]):
            yield

    def join(self) -> None:
        """Let what comes next on the current streams wait for all that was put aside."""
        for device, stream in self._streams.items():
            cuda.current_stream(device).wait_stream(stream)
