"""Progress bars with the time that is left, one for each stage that is under way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Track = Callable[[Any, str], Iterable[Any]]  # (items with a length, name of the stage) -> the same items


def untracked(items: Iterable[Any], stage: str) -> Iterable[Any]:
    """The items: the progress bar of a program without one."""
    return items


def progress_bars(console: Any = None) -> Track:
    """Return `track(items, stage)`, which shows a bar while its items are taken; bars inside others lie below them.

    Nothing is shown where the console (standard error if none is given) is no terminal.

    >>> track = progress_bars()
    >>> sum(row for rows in track([[1, 2], [3]], "all") for row in track(rows, "one"))
    6
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or Console(file=sys.stderr)
    columns = TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def track(items: Any, stage: str) -> Iterator[Any]:
        if not bars.tasks:
            bars.start()
        task = bars.add_task(stage, total=len(items) if hasattr(items, "__len__") else None)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)
            if not bars.tasks:
                bars.stop()

    return track
