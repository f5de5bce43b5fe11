"""The table of methods: complete, exported, documented, and clear about what each one needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, classes, targets

import leace_fast
from leace_fast import METHODS, Eraser
from leace_fast.methods import ROWS, TASK, moments_method

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.mark.parametrize("name", METHODS)
def test_is_exported_and_measured(name: str) -> None:
    assert METHODS[name].name == name and name in leace_fast.methods.__all__
    assert getattr(leace_fast.methods, name) is METHODS[name].fit
    page = PAGE.read_text(encoding="utf-8")
    assert re.search(rf"^\| `{name}` \|.* % \|.*s \|$", page, re.M), (
        "python bench/methods_table.py --write docs/methods.md"
    )


def test_what_is_exported_is_there() -> None:
    assert not [name for name in leace_fast.methods.__all__ if not hasattr(leace_fast.methods, name)]
    assert len({*leace_fast.methods.__all__}) == len(leace_fast.methods.__all__)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.needs])
def test_obeys_the_laws(name: str) -> None:
    """A method without a row in `cases.CASES` would be held to nothing."""
    assert [case for case in CASES if case.name.split(",")[0].split(" to ")[0] == name.replace("_", " ")]


@pytest.mark.parametrize("name", METHODS)
def test_its_row_says_whether_it_takes_targets_and_several_concepts(name: str) -> None:
    method = METHODS[name]
    if method.needs.startswith(ROWS):
        assert not method.targets and not method.several, "rows come with classes"
        return
    data = classes(300, 6, 3)
    task = (targets(300, 6, 1, seed=3).moments(),) if method.needs == TASK else ()
    if method.targets:
        method.fit(targets(300, 6, 1).moments(), *task)
    else:
        with pytest.raises(ValueError, match="targets|class"):
            method.fit(targets(300, 6, 1).moments(), *task)
    several = [data.moments(), classes(300, 6, 2, seed=2).moments()]
    if method.several:
        assert method.fit(several, *task).rank == 3
    else:
        with pytest.raises(TypeError, match="got a list of Moments, expected Moments|a batch is a Moments"):
            method.fit(several)


@pytest.mark.parametrize("name", METHODS)
def test_says_what_it_needs(name: str) -> None:
    method = METHODS[name]
    moments = classes(200, 5, 2).moments()
    if method.needs:
        with pytest.raises(ValueError, match=f"the method '{name}' needs .*: call it in Python, or use one of leace"):
            moments_method(name)
        return
    eraser = moments_method(name)(moments)
    assert isinstance(eraser, Eraser) and eraser.method == name and eraser.report is not None
    assert eraser.report.method == name and eraser.report.rank == eraser.rank
    assert repr(method(moments)) == repr(eraser), "a row of the table is called like its function"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown method 'leece', expected one of leace, .*; did you mean 'leace'?"):
        moments_method("leece")


NO_MOMENTS = (None, "rows", [(torch.ones(4, 2), torch.arange(4) % 2)])
FROM_MOMENTS = sorted({*METHODS} - {"inlp", "rlace", "median", "swap", "normalize_quantiles"})


@pytest.mark.parametrize("name", FROM_MOMENTS)
@pytest.mark.parametrize("given", NO_MOMENTS, ids=["None", "str", "rows"])
def test_what_is_no_moments_is_named(name: str, given: Any) -> None:
    task = (classes(200, 5, 2).moments(),) if name == "splince" else ()
    with pytest.raises(TypeError, match="got (None|a str|a list of tuple), expected .*Moments"):
        METHODS[name].fit(given, *task)
