"""The tables of docs/methods.md: every row of METHODS, in the words of its docstring, measured on the demo's model.

`python bench/methods_table.py --write docs/methods.md` measures all of it again; with `--words` in place of `--write`
only the words are renewed, and a method that was not measured yet gets its row. The picture is `methods_picture.py`.
"""

from __future__ import annotations

import argparse
import inspect
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import leace_fast as lf
from leace_fast.demo import ASSETS, CATEGORIES, batches_of, fits, load_modules
from leace_fast.evaluation import linear_probe
from leace_fast.methods import CLASS_COVARIANCES, LABELS, LABELS_AND_COVARIANCES, METHODS, ROWS, TASK

SITE = "model.layers.2.post_attention_layernorm"
MOST_ROWS = 20_000
BATCH = 500
PAIR = (1, 2)  # names and operators, for methods of two classes
HEADING = ["method", "what it is", "needs", "guarantees", "rank", "change", "probe", "fit"]
WORDS = 4  # columns that are not measured
MARKS = ("<!-- table begins: python bench/methods_table.py --write docs/methods.md -->", "<!-- table ends -->")
REPEATS = 3
SLOW = 2.0  # seconds past which a fit is timed once

LAST_STEPS = 12  # of logistic INLP on six classes, which needs many


@dataclass(frozen=True)
class Activations:
    """Rows to fit on and rows held out, with their classes; of the first the length of each token too."""

    x: Tensor
    y: Tensor
    length: Tensor
    test_x: Tensor
    test_y: Tensor

    def pair(self) -> Activations:
        """Return the rows of two classes, numbered 0 and 1."""
        kept, test = ((y == PAIR[0]) | (y == PAIR[1]) for y in (self.y, self.test_y))
        y, test_y = ((y == PAIR[1]).long() for y in (self.y[kept], self.test_y[test]))
        return Activations(self.x[kept], y, self.length[kept], self.test_x[test], test_y)

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


def activations() -> Activations:
    """Return the demo model's activations at one site, as float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "model", dtype="auto").eval()
    lengths = torch.tensor([[float(len(tokenizer.decode([token])))] for token in range(len(tokenizer))])
    parts: list[Tensor] = []
    for side in (True, False):
        modules = [module for module in load_modules(ASSETS / "held_out.jsonl.gz") if fits(module.name) == side]
        seen: list[Tensor] = []
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for batch in batches_of(modules, tokenizer):
            kept = (batch["concept_labels"] != -100) & batch["attention_mask"].bool()
            with torch.no_grad(), lf.tap(model, [SITE], lambda _, output, seen=seen: seen.append(output.float())):
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            found.append((seen.pop()[kept], batch["concept_labels"][kept], lengths[batch["input_ids"][kept]]))
            if sum(len(y) for _, y, _ in found) >= MOST_ROWS:
                break
        parts += [torch.cat(rows)[:MOST_ROWS] for rows in zip(*found, strict=True)]
    x, y, length, test_x, test_y, _ = parts
    return Activations(x, y, length, test_x, test_y)


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
    out, test = trial.apply(eraser, rows.x, rows.y), trial.apply(eraser, rows.test_x, rows.test_y)
    spread = float((rows.x - rows.x.mean(0)).double().square().sum(1).mean())
    change = float((out.double() - rows.x.double()).square().sum(1).mean()) / spread
    probe = linear_probe(out, rows.y, test, rows.test_y)
    rank = str(eraser.rank) if isinstance(eraser, lf.Eraser) else ""
    measured = [rank, f"{100 * change:.1f} %", f"{100 * probe.accuracy:.1f} %", duration(seconds)]
    return [trial.label, *trial.words, *measured]


def duration(seconds: float) -> str:
    """Return a time with two digits and its unit.

    >>> duration(0.0123)
    '12 ms'
    """
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3)
    return f"{float(f'{seconds / size:.2g}'):g} {unit}"


def table(rows: Activations, pair: bool) -> str:
    """Return one Markdown table, measured."""
    before = linear_probe(rows.x, rows.y, rows.test_x, rows.test_y)
    lines = [["none", *[""] * (WORDS - 1), "", "0 %", f"{100 * before.accuracy:.1f} %", ""]]
    for trial in TRIALS:
        if trial.pair == pair:
            lines.append(row(trial, rows))
            print(" | ".join(lines[-1]), flush=True)
    facts = (
        f"{len(rows.y):,} rows to fit on, {len(rows.test_y):,} held out; best constant {100 * before.constant:.1f} %."
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
    rows = activations()
    names = f"{CATEGORIES[PAIR[0]]}s against {CATEGORIES[PAIR[1]]}s"
    text = (
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
