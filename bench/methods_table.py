"""The table of docs/methods.md: every method, measured on activations of the demo's model.

`python bench/methods_table.py [--write docs/methods.md]`; the picture of that page is `methods_picture.py`.
"""

from __future__ import annotations

import argparse
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

SITE = "model.layers.2.post_attention_layernorm"
ROWS = 20_000
BATCH = 500
PAIR = (1, 2)  # names and operators, for methods of two classes
MARKS = ("<!-- table begins: python bench/methods_table.py --write docs/methods.md -->", "<!-- table ends -->")
REPEATS = 3
SLOW = 2.0  # seconds past which a fit is timed once

# What is known of each: formula, and what it guarantees.
FACTS: dict[str, tuple[str, str]] = {
    "leace": (
        "`x - L R (x - m)`, `L = S^1/2 U`, `R = U' S^-1/2`",
        "class means equal; of all affine maps that do this, least change; mean kept",
    ),
    "orth": ("`x - U U' (x - m)`, U spans `Sxz`", "class means equal; mean kept"),
    "mean_projection": ("`x - V V' x`, V spans the differences of class means", "class means equal; no offset"),
    "ace": ("`x - V V' (x - m_ref)`", "class means equal, that of the reference along V"),
    "switch": ("`x - L R (x - m_to)`; two classes: `x - 2 L R (x - midpoint)`", "class means equal, or exchanged"),
    "splince": (
        "as leace, with `R = (U' Q U)^-1 U' Q S^-1/2`, Q off the task",
        "class means equal; covariance with the task kept; least change of all that do both; mean kept",
    ),
    "alf_qleace": (
        "leace, then off eigenvectors of `S_j - S` one by one",
        "class means equal; class covariances within a tenth of what they were apart; mean kept",
    ),
    "inlp": ("`x - W W^+ (x - m)`, W classifiers one after another", "what a classifier explains is below a bound"),
    "inlp, logistic": ("the same with logistic regressions on the rows", "accuracy below a bound, or a last step"),
    "rlace": ("`x - V V' (x - m)`, V against the best classifier", "none; near orth at full rank"),
    "difference_in_means": ("`x - v v' x`, v from one class mean to another", "two class means equal; no offset"),
    "median": ("`x - v (v' x - median)`", "two class means equal; the coordinate constant"),
    "oracle": ("`x - (m_y - m)`", "class means equal; of all maps, least change; mean kept"),
    "quadratic": ("`A_y (x - m_y) + m`, to the barycentre", "class means and covariances equal; mean kept"),
    "mimic": ("`A_y (x - m_y) + m_t`", "class means and covariances those of class t"),
    "quadratic_editor": ("`A_yt (x - m_y) + m_t` for every t", "as mimic; any class to any other"),
    "swap": ("`x + v (F_other^-1(F_y(v' x)) - v' x)`", "distributions along v exchanged"),
    "normalize_quantiles": ("`F^-1(F_y(x))` in each column", "distributions of each column equal"),
}
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
            if sum(len(y) for _, y, _ in found) >= ROWS:
                break
        parts += [torch.cat(rows)[:ROWS] for rows in zip(*found, strict=True)]
    x, y, length, test_x, test_y, _ = parts
    return Activations(x, y, length, test_x, test_y)


@dataclass(frozen=True)
class Trial:
    """One method on one set of rows: what is timed, and how its result is applied to rows and their classes."""

    name: str
    fit: Callable[[Activations], Any]
    labelled: bool = False
    pair: bool = False

    def apply(self, eraser: Any, x: Tensor, y: Tensor) -> Tensor:
        if self.name == "quadratic_editor":
            return eraser(x, y, 0)
        return eraser(x, y) if self.labelled else eraser(x)


TRIALS = [
    Trial("leace", lambda a: lf.leace(a.moments)),
    Trial("orth", lambda a: lf.methods.orth(a.moments)),
    Trial("mean_projection", lambda a: lf.methods.mean_projection(a.moments)),
    Trial("ace", lambda a: lf.methods.ace(a.moments, 1)),
    Trial("switch", lambda a: lf.methods.switch(a.moments, to=1)),
    Trial("splince", lambda a: lf.methods.splince(a.moments, a.task)),
    Trial("alf_qleace", lambda a: lf.methods.alf_qleace(a.class_moments)),
    Trial("inlp", lambda a: lf.methods.inlp(a.moments)),
    Trial("inlp, logistic", lambda a: lf.methods.inlp(a.batches, max_iterations=LAST_STEPS)),
    Trial("rlace", lambda a: lf.methods.rlace(a.batches, rank=5)),
    Trial("oracle", lambda a: lf.methods.oracle(a.moments), labelled=True),
    Trial("quadratic", lambda a: lf.methods.quadratic(a.class_moments), labelled=True),
    Trial("mimic", lambda a: lf.methods.mimic(a.class_moments, 1), labelled=True),
    Trial("quadratic_editor", lambda a: lf.methods.quadratic_editor(a.class_moments), labelled=True),
    Trial("normalize_quantiles", lambda a: lf.methods.normalize_quantiles(a.batches), labelled=True),
    Trial("leace", lambda a: lf.leace(a.moments), pair=True),
    Trial("difference_in_means", lambda a: lf.methods.difference_in_means(a.moments), pair=True),
    Trial("switch", lambda a: lf.methods.switch(a.moments), pair=True),
    Trial("inlp, logistic", lambda a: lf.methods.inlp(a.batches, max_iterations=LAST_STEPS), pair=True),
    Trial("rlace", lambda a: lf.methods.rlace(a.batches), pair=True),
    Trial("median", lambda a: lf.methods.median(a.batches), pair=True),
    Trial("swap", lambda a: lf.methods.swap(a.batches), labelled=True, pair=True),
]


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
    """Return one line: method, formula, needs, guarantees, rank, change, probe, time."""
    for part in ("moments", "class_moments", "task", "batches"):
        getattr(rows, part)  # the pass over the rows is not the method's time
    eraser, seconds = timed(lambda: trial.fit(rows))
    out, test = trial.apply(eraser, rows.x, rows.y), trial.apply(eraser, rows.test_x, rows.test_y)
    spread = float((rows.x - rows.x.mean(0)).double().square().sum(1).mean())
    change = float((out.double() - rows.x.double()).square().sum(1).mean()) / spread
    probe = linear_probe(out, rows.y, test, rows.test_y)
    rank = str(eraser.rank) if isinstance(eraser, lf.Eraser) else ""
    formula, guarantee = FACTS[trial.name]
    needs = lf.METHODS[trial.name].needs if trial.name in lf.METHODS else "passes over the rows"
    cells = [f"`{trial.name}`" if trial.name in lf.METHODS else trial.name, formula, needs or "moments", guarantee]
    return [*cells, rank, f"{100 * change:.1f} %", f"{100 * probe.accuracy:.1f} %", duration(seconds)]


def duration(seconds: float) -> str:
    """Return a time with two digits and its unit.

    >>> duration(0.0123)
    '12 ms'
    """
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3)
    return f"{float(f'{seconds / size:.2g}'):g} {unit}"


def table(rows: Activations, trials: list[Trial]) -> str:
    """Return one Markdown table."""
    before = linear_probe(rows.x, rows.y, rows.test_x, rows.test_y)
    heading = ["method", "formula", "needs", "guarantees", "rank", "change", "probe", "fit"]
    lines = [heading, [*["---"] * 4, *["---:"] * 4]]
    lines.append(["none", "", "", "", "", "0 %", f"{100 * before.accuracy:.1f} %", ""])
    for trial in trials:
        lines.append(row(trial, rows))
        print(" | ".join(lines[-1]), flush=True)
    facts = (
        f"{len(rows.y):,} rows to fit on, {len(rows.test_y):,} held out; best constant {100 * before.constant:.1f} %."
    )
    return facts + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into a page, between its marks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = activations()
    names = f"{CATEGORIES[PAIR[0]]}s against {CATEGORIES[PAIR[1]]}s"
    text = (
        f"### All {len(CATEGORIES)} categories\n\n{table(rows, [t for t in TRIALS if not t.pair])}\n\n"
        f"### Two classes: {names}\n\n{table(rows.pair(), [t for t in TRIALS if t.pair])}"
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
