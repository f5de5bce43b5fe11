"""The tables of docs/methods.md: every row of METHODS, in the words of its docstring, measured on the demo's model.

Methods are fitted on rows of half of the held-out modules. Fresh probes look at the other half, in two ways: trained on
every other module and tested on the rest, both ways round; and trained on every other window and tested on the rest.

`python bench/methods_table.py --write docs/methods.md` measures all of it again; with `--words` in place of `--write`
only the words are renewed, and a method that was not measured yet gets its row. The picture is `methods_picture.py`.
"""

from __future__ import annotations

import argparse
import inspect
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from demo_text import Reading, Text, load_text
from torch import Tensor

import leace_fast as lf
from leace_fast.demo import CATEGORIES, Module
from leace_fast.evaluation import linear_probe
from leace_fast.methods import CLASS_COVARIANCES, LABELS, LABELS_AND_COVARIANCES, METHODS, ROWS, TASK
from leace_fast.models import GROUPS

SITE = "model.layers.2.post_attention_layernorm"
ROWS_TO_FIT, FRESH_ROWS = 20_000, 12_000
BATCH = 500
PAIR = (1, 2)  # names and operators, for methods of two classes
HEADING = ["method", "what it is", "needs", "guarantees", "rank", "change", "other modules", "same modules", "fit"]
WORDS = 4  # columns that are not measured
MARKS = ("<!-- table begins: python bench/methods_table.py --write docs/methods.md -->", "<!-- table ends -->")
REPEATS = 3
SLOW = 2.0  # seconds past which a fit is timed once

LAST_STEPS = 12  # of logistic INLP on six classes, which needs many


@dataclass(frozen=True)
class Activations:
    """Rows to fit on, with their classes and the length of each token; fresh ones, with their classes and windows."""

    x: Tensor
    y: Tensor
    length: Tensor
    fresh_x: Tensor
    fresh_y: Tensor
    modules: Tensor
    windows: Tensor

    def pair(self) -> Activations:
        """Return the rows of two classes, numbered 0 and 1."""
        kept, fresh = ((y == PAIR[0]) | (y == PAIR[1]) for y in (self.y, self.fresh_y))
        y, fresh_y = ((y == PAIR[1]).long() for y in (self.y[kept], self.fresh_y[fresh]))
        more = (self.modules[fresh], self.windows[fresh])
        return Activations(self.x[kept], y, self.length[kept], self.fresh_x[fresh], fresh_y, *more)

    def read(self, erased: Tensor) -> tuple[Reading, Reading]:
        """Return what probes read in the fresh rows, erased: trained on other modules, and on other windows."""
        by_module = [_probe(erased, self.fresh_y, self.modules, side) for side in (0, 1)]
        return Reading.of(by_module), Reading.of([_probe(erased, self.fresh_y, self.windows, 1)])

    @property
    def num_classes(self) -> int:
        return int(self.y.max()) + 1

    @cached_property
    def moments(self) -> lf.Moments:
        return lf.Moments(self.x.shape[1], self.num_classes).update(self.x, self.y)

    @cached_property
    def class_moments(self) -> lf.Moments:
        return lf.Moments(self.x.shape[1], self.num_classes, per_class=True).update(self.x, self.y)

    @cached_property
    def task(self) -> lf.Moments:
        return lf.Moments(self.x.shape[1], target_dim=1).update(self.x, self.length)

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.x.split(BATCH), self.y.split(BATCH), strict=True))


def _probe(x: Tensor, y: Tensor, groups: Tensor, side: int) -> dict[str, Any]:
    """Return what a probe reads in every other group, from the even or the odd ones; the rest trains it."""
    half = groups.unique(return_inverse=True)[1] % 2
    train, test = half != side, half == side
    probe = linear_probe(x[train], y[train], x[test], y[test], groups=groups[test], train_groups=groups[train])
    return probe._asdict()


def activations(text: Text) -> Activations:
    """Return the demo model's activations at one site, as float32: rows drawn evenly from all modules of each half."""
    lengths = torch.tensor([[float(len(text.tokenizer.decode([token])))] for token in range(len(text.tokenizer))])
    x, y, tokens, _, _ = drawn(text, text.fit, ROWS_TO_FIT)
    fresh_x, fresh_y, _, modules, windows = drawn(text, text.fresh, FRESH_ROWS)
    return Activations(x, y, lengths[tokens], fresh_x, fresh_y, modules, windows)


def drawn(text: Text, modules: Sequence[Module], number: int) -> list[Tensor]:
    """Return rows drawn evenly from modules, with their classes, tokens, modules and windows."""
    seen: list[Tensor] = []
    found: list[tuple[Tensor, ...]] = []
    count = 0
    for batch in text.batches(modules):
        ids, y = batch["input_ids"], batch["concept_labels"]
        kept = (y != -100) & batch["attention_mask"].bool()
        with torch.no_grad(), lf.tap(text.model, [SITE], lambda _, output: seen.append(output.float())):
            text.model(input_ids=ids, attention_mask=batch["attention_mask"])
        of_module, of_window = batch[GROUPS], torch.arange(count, count + len(ids))
        count += len(ids)
        each = (of[:, None].expand(y.shape)[kept] for of in (of_module, of_window))
        found.append((seen.pop()[kept], y[kept], ids[kept], *each))
    rows = [torch.cat(column) for column in zip(*found, strict=True)]
    some = torch.linspace(0, len(rows[0]) - 1, number).long()
    return [column[some] for column in rows]


@dataclass(frozen=True)
class Trial:
    """One method on one set of rows: what is timed, how its result is applied, and what the page says of it."""

    name: str
    fit: Callable[[Activations], Any]
    words: tuple[str, str, str]  # what it is, what it needs, what it guarantees
    pair: bool = False

    @property
    def label(self) -> str:
        return f"`{self.name}`" if self.name in METHODS else self.name

    def apply(self, eraser: Any, x: Tensor, y: Tensor) -> Tensor:
        if self.name == "quadratic_editor":
            return eraser(x, y, 0)
        return eraser(x, y) if self.words[1].endswith(LABELS) else eraser(x)


def words_of(name: str) -> tuple[str, str, str]:
    """Return what the docstring of a method says that it is, what its row says that it needs, what it guarantees.

    >>> words_of("ace")[0]
    "`x - V V' (x - m)`, V a basis of the differences of class means, m the reference class's mean"
    """
    text = inspect.getdoc(METHODS[name].fit) or ""
    found = re.search(r"^Guarantees: (.*?)\n\n", text, re.M | re.S)
    promise = " ".join(found[1].split()).removesuffix(".") if found else ""
    what = text.split("\n", 1)[0].removeprefix("Return ").removesuffix(".")
    return what, METHODS[name].needs or "moments", promise


# How a method is fitted where its data alone are not enough to say.
FITS: dict[str, Callable[[Activations], Any]] = {
    "ace": lambda a: lf.methods.ace(a.moments, 1),
    "switch": lambda a: lf.methods.switch(a.moments, to=1),
    "rlace": lambda a: lf.methods.rlace(a.batches, rank=5),
}
PAIR_FITS: dict[str, Callable[[Activations], Any]] = {
    "leace": lambda a: lf.leace(a.moments),
    "difference_in_means": lambda a: lf.methods.difference_in_means(a.moments),
    "switch": lambda a: lf.methods.switch(a.moments),
    "rlace": lambda a: lf.methods.rlace(a.batches),
    "median": lambda a: lf.methods.median(a.batches),
    "swap": lambda a: lf.methods.swap(a.batches),
}
OF_TWO_CLASSES = {"difference_in_means", "median", "swap"}


def fit_of(name: str) -> Callable[[Activations], Any]:
    """Return the fit of a method on what it needs."""
    method = METHODS[name]
    if method.needs == TASK:
        return lambda a: method(a.moments, a.task)
    if method.needs in (CLASS_COVARIANCES, LABELS_AND_COVARIANCES):
        return lambda a: method(a.class_moments)
    return lambda a: method(a.batches if method.needs.startswith(ROWS) else a.moments)


LOGISTIC = (
    "inlp, logistic",
    lambda a: lf.methods.inlp(a.batches, max_iterations=LAST_STEPS),
    ("`inlp` with logistic regressions on the rows", ROWS, "accuracy below a bound, or a last step"),
)
ALL = [Trial(name, FITS.get(name) or fit_of(name), words_of(name)) for name in METHODS if name not in OF_TWO_CLASSES]
PAIRED = [Trial(name, fit, words_of(name), pair=True) for name, fit in PAIR_FITS.items()]
TRIALS = [*ALL, Trial(*LOGISTIC), *PAIRED, Trial(*LOGISTIC, pair=True)]


def timed(fit: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the least processor time it took, in seconds."""
    best = float("inf")
    for _ in range(REPEATS):
        begin = time.process_time()
        result = fit()
        best = min(best, time.process_time() - begin)
        if best > SLOW:
            break
    return result, best


def row(trial: Trial, rows: Activations) -> list[str]:
    """Return one line of the table."""
    for part in ("moments", "class_moments", "task", "batches"):
        getattr(rows, part)  # the pass over the rows is not the method's time
    eraser, seconds = timed(lambda: trial.fit(rows))
    out, fresh = trial.apply(eraser, rows.x, rows.y), trial.apply(eraser, rows.fresh_x, rows.fresh_y)
    spread = float((rows.x - rows.x.mean(0)).double().square().sum(1).mean())
    change = float((out.double() - rows.x.double()).square().sum(1).mean()) / spread
    rank = str(eraser.rank) if isinstance(eraser, lf.Eraser) else ""
    measured = [rank, f"{100 * change:.1f} %", *map(written, rows.read(fresh)), duration(seconds)]
    return [trial.label, *trial.words, *measured]


def written(reading: Reading) -> str:
    """Return the accuracy of probes, and the nats that they gain over the constant."""
    return f"{100 * reading.accuracy:.1f} %, {reading.nats:+.3f}"


def duration(seconds: float) -> str:
    """Return a time with two digits and its unit.

    >>> duration(0.0123)
    '12 ms'
    """
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3)
    return f"{float(f'{seconds / size:.2g}'):g} {unit}"


def table(rows: Activations, pair: bool) -> str:
    """Return one Markdown table, measured."""
    before = rows.read(rows.fresh_x)
    lines = [["none", *[""] * (WORDS - 1), "", "0 %", *map(written, before), ""]]
    for trial in TRIALS:
        if trial.pair == pair:
            lines.append(row(trial, rows))
            print(" | ".join(lines[-1]), flush=True)
    other, same = (f"{100 * each.constant:.1f} %" for each in before)
    facts = (
        f"{len(rows.y):,} rows to fit, {len(rows.fresh_y):,} of {len(rows.modules.unique())} fresh modules to probe: "
        f"constant {other} (other modules), {same} (same modules)."
    )
    return f"{facts}\n\n{markdown(lines)}"


def markdown(lines: list[list[str]]) -> str:
    """Return lines below the heading as a Markdown table."""
    every = [HEADING, ["---"] * WORDS + ["---:"] * (len(HEADING) - WORDS), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)


def reworded(page: str) -> str:
    """Return the page with the words of each row renewed and what was measured kept, blank where nothing was."""
    head, rest = page.split(MARKS[0])
    block, tail = rest.split(MARKS[1], 1)
    for pair, old in zip((False, True), re.findall(r"^\| method.*?(?=\n\n)", block, re.M | re.S), strict=True):
        cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in old.splitlines()[2:]]
        measured = {line[0]: line[WORDS:] for line in cells}
        lines = [cells[0]]  # of no method
        for trial in TRIALS:
            if trial.pair == pair:
                lines.append([trial.label, *trial.words, *measured.get(trial.label, [""] * (len(HEADING) - WORDS))])
        block = block.replace(old, markdown(lines))
    return f"{head}{MARKS[0]}{block}{MARKS[1]}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into a page, between its marks")
    parser.add_argument("--words", type=Path, metavar="PAGE", help="renew the words of its tables, measure nothing")
    options = parser.parse_args()
    if options.words:
        options.words.write_text(reworded(options.words.read_text(encoding="utf-8")), encoding="utf-8")
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_text()
    rows = activations(data)
    names = f"{CATEGORIES[PAIR[0]]}s against {CATEGORIES[PAIR[1]]}s"
    text = (
        f"Erasers are fitted on rows of {len(data.fit)} modules.\n\n"
        f"### All {len(CATEGORIES)} categories\n\n{table(rows, pair=False)}\n\n"
        f"### Two classes: {names}\n\n{table(rows.pair(), pair=True)}"
    )
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        head, rest = page.split(MARKS[0])
        tail = rest.split(MARKS[1], 1)[1]
        options.write.write_text(f"{head}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{tail}", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
