"""Exceptions that come from nowhere: at any instruction of the package, at any operation of torch, by a signal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import leace_fast

PACKAGE = str(Path(leace_fast.__file__).parent)


class Instructions:
    """Raises KeyboardInterrupt at one instruction of the package, counted from the start of a call."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count = at, 0

    def __enter__(self) -> Instructions:
        sys.settrace(self._begin)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)

    def _begin(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            if self.count == self.at:
                self.count += 1
                sys.settrace(None)
                raise KeyboardInterrupt
            self.count += 1
        return self._step


class Operations(TorchDispatchMode):
    """Raises MemoryError at one operation of torch, counted from the start of a call."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count - 1 == self.at:
            raise MemoryError
        return func(*args, **(kwargs or {}))


@contextmanager
def timer(seconds: float) -> Iterator[None]:
    """Raise KeyboardInterrupt after some seconds, as Ctrl-C does."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def points(act: Callable[[], Any], kind: type[Instructions] | type[Operations]) -> int:
    """Return how many points there are at which a call can fail."""
    with torch.no_grad(), kind() as counting:
        act()
    return counting.count
