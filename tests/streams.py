"""Streams of a GPU, emulated: nothing runs, but who touches which memory is noted, and whether it was ordered.

Each stream has a vector clock (Fidge 1988, Mattern 1989): an event carries it over to those that wait for it. Two
streams that touch the same storage without such an order race.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Stream:
    def __init__(self, device: Any = None, name: str = "side") -> None:
        self.name = name
        self.clock: dict[str, int] = {}

    def wait_event(self, event: Event) -> None:
        for name, tick in event.clock.items():
            self.clock[name] = max(tick, self.clock.get(name, 0))

    def wait_stream(self, other: Stream) -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)

    def saw(self, other: str, tick: int) -> bool:
        return other == self.name or self.clock.get(other, 0) >= tick


class Event:
    def record(self, stream: Stream) -> None:
        self.clock = dict(stream.clock)


class Cuda(TorchDispatchMode):
    """Takes the place of `torch.cuda`, and as a context manager sees what torch does."""

    Event, Stream = Event, Stream

    def __init__(self) -> None:
        super().__init__()
        self.main = self.current = Stream(name="main")
        self.races: list[str] = []
        self.kept: set[tuple[str, int]] = set()
        self.work: list[tuple[str, str]] = []
        self.allocations = 0
        self._last: dict[int, tuple[Tensor, dict[str, tuple[int, str]]]] = {}

    def current_stream(self, device: Any = None) -> Stream:
        return self.current

    def is_current_stream_capturing(self) -> bool:
        return False

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def keep(self, memory: Any, stream: Stream) -> None:
        self.kept |= {(stream.name, tensor.untyped_storage()._cdata) for tensor in memory}

    def touch(self, what: str, tensors: Any) -> None:
        """Note one piece of work on the current stream."""
        stream = self.current
        tick = stream.clock[stream.name] = stream.clock.get(stream.name, 0) + 1
        self.work.append((stream.name, what))
        for tensor in tensors:
            if not tensor.numel():
                continue
            # The tensor is held, so that no other one comes to stand where it did.
            _, before = self._last.setdefault(tensor.untyped_storage()._cdata, (tensor, {}))
            for other, (when, which) in before.items():
                if not stream.saw(other, when):
                    self.races.append(f"{what} on {stream.name} and {which} on {other}")
            before[stream.name] = tick, what

    def launch(self, kernel: Any, grid: Any, arguments: Any, warps: int) -> None:
        """Stand in for the launch of a kernel."""
        parts = [getattr(one, "base", one) for one in arguments]
        self.touch(kernel.__name__, [part for part in parts if isinstance(part, Tensor)])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else [result]
        returned = [one.alias_info for one in func._schema.returns]
        if any(one is not None and not one.is_write for one in returned):
            return result  # a view
        self.allocations += any(one is None for one in returned)
        self.touch(func.overloadpacket.__name__, [part for part in (*args, *outputs) if isinstance(part, Tensor)])
        return result
