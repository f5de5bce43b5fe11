"""Two threads against one, on a machine that is idle and on one where others work: `python bench/busy_machine.py`.

Each figure is how many times faster calls with two threads are than calls with one: they take turns in one process,
while 0, 1 or 2 other processes keep a core busy each. Beside ours stands the update of the peer, concept-erasure.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import torch
from concept_erasure import LeaceFitter

import leace_fast as lf

ROWS, CLASSES = 16384, 8
DIMS = (512, 1024, 2048)
NEIGHBOURS = (0, 1, 2)
PAGE = Path(__file__).parents[1] / "docs" / "appendix" / "performance.md"
BEGIN, END = "<!-- busy begins: python bench/busy_machine.py --write -->", "<!-- busy ends -->"


def _busy(parent: int) -> None:
    while os.getppid() == parent:  # also where that is killed
        for _ in range(10**6):
            pass


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes of the same priority that never rest, inside the `with` block."""
    others = [multiprocessing.get_context("spawn").Process(target=_busy, args=(os.getpid(),)) for _ in range(count)]
    for other in others:
        other.start()
    time.sleep(0.5 if others else 0)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def ratio(call: Callable[[], object], seconds: float) -> float:
    """Seconds with one thread over seconds with two, of calls in alternating order."""

    def time_of(threads: int) -> float:
        torch.set_num_threads(threads)
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    for threads in (1, 2):
        time_of(threads)
    one, two = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(one) < 10:
        for threads in ((1, 2), (2, 1))[len(one) % 2]:
            (one if threads == 1 else two).append(time_of(threads))
    return sum(one) / sum(two)


def calls(dim: int, batch: int) -> dict[str, Callable[[], object]]:
    """What is timed: 16,384 rows in batches, by ours and by the peer; erasing them; and the closed form."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, dim, generator=generator)
    y = torch.randint(CLASSES, (ROWS,), generator=generator)
    z = torch.nn.functional.one_hot(y, CLASSES).float()
    moments, fitter = lf.Moments(dim, CLASSES), LeaceFitter(dim, CLASSES, dtype=torch.float32)
    eraser = lf.leace(moments.copy().update(x, y))

    def update() -> None:
        for rows, labels in zip(x.split(batch), y.split(batch), strict=True):
            moments.update(rows, labels)

    def peer_update() -> None:
        for rows, labels in zip(x.split(batch), z.split(batch), strict=True):
            fitter.update(rows, labels)

    update()
    return {
        "update": update,
        "concept-erasure update": peer_update,
        "apply": lambda: eraser(x),
        "leace": lambda: lf.leace(moments),
    }


def table(found: list[dict[str, Any]]) -> str:
    """The results as a table of Markdown: a row for each call and width, a column for each number of neighbours."""
    lines = ["| call | width | rows of a call | idle | one neighbour | two |", "|---|---:|---:|---:|---:|---:|"]
    cells: dict[tuple[str, int, int], dict[int, float]] = {}
    for row in found:
        cells.setdefault((row["call"], row["dim"], row["batch"]), {})[row["neighbours"]] = row["ratio"]
    for (call, dim, batch), ratios in sorted(cells.items()):
        rows = f"{batch:,}" if "update" in call else f"{ROWS:,}" if call == "apply" else ""
        columns = " | ".join(f"{ratios[count]:.2f}" for count in NEIGHBOURS)
        lines.append(f"| {call} | {dim} | {rows} | {columns} |")
    return "\n".join(lines)


def write(found: list[dict[str, Any]]) -> None:
    """Put the table into the page, between its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}", encoding="utf-8")


def measured(seconds: float, batches: list[int], only: list[str]) -> Iterator[dict[str, Any]]:
    """Measure all, or some of the calls; only the updates depend on the size of a batch."""
    for dim in DIMS:
        for batch in batches:
            for name, call in calls(dim, batch).items():
                if (only and name not in only) or ("update" not in name and batch != batches[0]):
                    continue
                for count in NEIGHBOURS:
                    with neighbours(count):
                        value = ratio(call, seconds)
                    yield {"call": name, "dim": dim, "batch": batch, "neighbours": count, "ratio": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each figure")
    parser.add_argument("--only", nargs="*", default=[], help="which calls")
    parser.add_argument("--batch", type=int, nargs="*", default=[256, 4096])
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of few rows: nothing is made of these erasers
    found = []
    for row in measured(options.seconds, options.batch, options.only):
        found.append(row)
        print("{call:24} d={dim:5} batch={batch:5} neighbours={neighbours}: {ratio:.2f}x".format(**row), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine.describe(), "results": found}, indent=1) + "\n")
    if options.write:
        write(found)


if __name__ == "__main__":
    main()
