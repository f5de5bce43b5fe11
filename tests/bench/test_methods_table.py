"""The tables of docs/methods.md: in the words of the docstrings, and measured by a bench that runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from cases import classes

from leace_fast import METHODS
from leace_fast.methods import Method, leace

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.delitem(sys.modules, "methods_table", raising=False)
    import methods_table  # type: ignore[import-not-found]

    yield methods_table
    sys.modules.pop("methods_table", None)


def test_the_page_says_what_the_docstrings_say(bench) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert bench.reworded(page) == page, "stale: run python bench/methods_table.py --words docs/methods.md"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is_and_what_it_guarantees(bench, name: str) -> None:
    what, needs, guarantees = bench.words_of(name)
    assert what and guarantees and needs == (METHODS[name].needs or "moments")
    assert not any(mark in text for text in (what, needs, guarantees) for mark in ("|", "\n"))


def test_a_method_that_was_not_measured_gets_its_row(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh(moments):
        """Return what `leace` returns.

        Source: none.
        """
        return leace(moments)

    monkeypatch.setitem(bench.METHODS, "fresh", Method(fresh))
    trial = bench.Trial("fresh", bench.fit_of("fresh"), bench.words_of("fresh"))
    monkeypatch.setattr(bench, "TRIALS", [*bench.TRIALS, trial])
    page = PAGE.read_text(encoding="utf-8")
    again = bench.reworded(page)
    row = "| `fresh` | what `leace` returns | moments |  |  |  |  |  |  |\n"
    assert again.count(row) == 1 and again.replace(row, "") == page


@pytest.mark.filterwarnings("ignore:not erased")
def test_every_trial_runs(bench) -> None:
    data, held_out = classes(600, 8, 6), classes(600, 8, 6, seed=1)
    length = torch.randn(600, 1, generator=torch.Generator().manual_seed(0))
    modules, windows = torch.arange(600) // 50, torch.arange(600) // 10
    rows = bench.Activations(data.x.float(), data.y, length, held_out.x.float(), held_out.y, modules, windows)
    seen = set()
    for trial in bench.TRIALS:
        cells = bench.row(trial, rows.pair() if trial.pair else rows)
        seen.add(trial.name)
        assert len(cells) == len(bench.HEADING) and cells[bench.WORDS + 1].endswith(" %") and cells[-1].endswith("s")
    assert seen == {*METHODS, "inlp, logistic"}
