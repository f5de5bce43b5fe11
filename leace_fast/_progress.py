"""Progress of the stages that are under way: bars with the time that is left, or a line a minute off a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ._extras import optional

Track = Callable[[Any, str], Iterable[Any]]  # (items with a length, name of the stage) -> the same items
BETWEEN_LINES = 60.0  # seconds


def untracked(items: Iterable[Any], stage: str) -> Iterable[Any]:
    """The items: the progress of a program that shows none."""
    return items


def progress_bars(console: Any = None, clock: Callable[[], float] = time.monotonic) -> Track:
    """Return `track(items, stage)`, which shows a bar while its items are taken; bars inside others lie below them.

    Where the console (standard error if none is given) is no terminal, a line is printed to standard error once a
    minute instead, so that the log of a long job shows life; a job of less than a minute prints nothing.

    Args:
        console: of rich.
        clock: the time in seconds.

    >>> track = progress_bars()
    >>> sum(row for rows in track([[1, 2], [3]], "all") for row in track(rows, "one"))
    6
    """
    with optional("progress bars need rich"):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or Console(file=sys.stderr)
    if not console.is_terminal:
        return _Lines(clock).track
    columns = TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bars = Progress(*columns, console=console, transient=True)

    def track(items: Any, stage: str) -> Iterator[Any]:
        if not bars.tasks:
            bars.start()
        task = bars.add_task(stage, total=_length(items))
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)
            if not bars.tasks:
                bars.stop()

    return track


def _length(items: Any) -> int | None:
    try:
        return len(items)
    except (TypeError, NotImplementedError):  # a loader of a stream has a length in name only
        return None


@dataclass(eq=False)
class _Stage:
    """A stage under way: `done` of `total` items (None: unknown)."""

    name: str
    total: int | None
    done: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.done}" + ("" if self.total is None else f" of {self.total}")


class _Lines:
    """Prints the stages under way, the outer ones first, at most once a minute, as an item is done."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.stages: list[_Stage] = []
        self.begin: float | None = None  # of the first stage: a job may have several, one after another
        self.printed = 0.0

    def track(self, items: Any, stage: str) -> Iterator[Any]:
        """Return the items of a stage."""
        now = _Stage(stage, _length(items))
        if self.begin is None:
            self.begin = self.printed = self.clock()
        self.stages.append(now)
        try:
            for item in items:
                yield item
                now.done += 1
                self._print()
        finally:
            self.stages.remove(now)

    def _print(self) -> None:
        now = self.clock()
        if self.begin is None or now - self.printed < BETWEEN_LINES:
            return
        self.printed = now
        print(f"{', '.join(map(str, self.stages))}: {now - self.begin:.0f} s", file=sys.stderr, flush=True)
