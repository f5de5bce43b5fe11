"""The table of methods: complete, exported, documented, and clear about what each one needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import classes

import leace_fast
from leace_fast import METHODS, Eraser
from leace_fast.methods import moments_method

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.mark.parametrize("name", METHODS)
def test_is_exported_and_measured(name: str) -> None:
    assert getattr(leace_fast.methods, name) is METHODS[name].fit
    assert f"| `{name}` |" in PAGE.read_text(encoding="utf-8"), "run bench/methods_table.py --write docs/methods.md"


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
