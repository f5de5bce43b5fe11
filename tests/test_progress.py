"""Progress: bars on a terminal, a line a minute off it, nothing for short jobs; by a clock that a test sets."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from leace_fast._progress import progress_bars, untracked


class Clock:
    """A clock that goes on by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def log() -> Console:
    """A console that is no terminal."""
    return Console(file=io.StringIO(), force_terminal=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "", "the output of a program is its own"
    return captured.err.splitlines()


def test_off_a_terminal_a_line_a_minute(capsys) -> None:
    clock = Clock()
    for _ in progress_bars(log(), clock)(range(20), "read"):
        clock.now += 25
    assert lines(capsys) == [
        "read 3 of 20: 75 s",
        "read 6 of 20: 150 s",
        "read 9 of 20: 225 s",
        "read 12 of 20: 300 s",
        "read 15 of 20: 375 s",
        "read 18 of 20: 450 s",
    ]


def test_a_job_of_less_than_a_minute_prints_nothing(capsys) -> None:
    clock = Clock()
    track = progress_bars(log(), clock)
    for stage in ("read", "fit"):
        for _ in track(range(100), stage):
            clock.now += 0.299
    assert lines(capsys) == []


def test_short_stages_of_a_long_job_show_life(capsys) -> None:
    clock = Clock()
    track = progress_bars(log(), clock)
    for stage in ("read", "fit", "test"):
        for _ in track(range(4), stage):
            clock.now += 10
    assert lines(capsys) == ["fit 2 of 4: 60 s", "test 4 of 4: 120 s"]


def test_stages_inside_others_stand_behind_them_and_end(capsys) -> None:
    clock = Clock()
    track = progress_bars(log(), clock)
    for site in track(["a", "b"], "sites"):
        for _ in track((row for row in range(2)), f"site {site}"):  # of unknown length
            clock.now += 40
    assert lines(capsys) == ["sites 0 of 2, site a 2: 80 s", "sites 1 of 2, site b 2: 160 s"]


def test_a_stage_that_fails_is_not_under_way(capsys) -> None:
    clock = Clock()
    track = progress_bars(log(), clock)

    def broken() -> Any:
        yield 1
        raise KeyError("row")

    with pytest.raises(KeyError):
        list(track(broken(), "read"))
    for _ in track([1], "again"):
        clock.now += 60
    assert lines(capsys) == ["again 1 of 1: 60 s"]


def test_on_a_terminal_there_are_bars_and_no_lines(capsys) -> None:
    clock = Clock()
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    for _ in progress_bars(screen, clock)(range(3), "read"):
        clock.now += 100
    assert lines(capsys) == []
    assert "read" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_console_the_lines_go_to_standard_error(capsys) -> None:
    clock = Clock()
    for _ in progress_bars(clock=clock)([1], "read"):
        clock.now += 61
    assert lines(capsys) == ["read 1 of 1: 61 s"]


def test_untracked_stays_silent(capsys) -> None:
    items = range(3)
    assert untracked(items, "read") is items
    assert lines(capsys) == []
