"""The worked example of CONTRIBUTING.md: the method that it adds works, and obeys the laws that its row promises."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from cases import HARD
from laws import ERASER_LAWS, within

from leace_fast.methods import METHODS, Method

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def example() -> tuple[dict[str, Any], str, str]:
    """Return the names that the method's file defines, its row in METHODS and its row in the cases."""
    text = PAGE.read_text(encoding="utf-8").split("tests/methods/test_contributing.py runs what follows")[1]
    file, row, case = re.findall(r"```python\n(.*?)```", text, re.S)[:3]
    module = types.ModuleType("leace_fast.methods._fisher")
    module.__package__ = "leace_fast.methods"
    exec(compile(file, "_fisher.py", "exec"), vars(module))
    return vars(module), row, case


def test_its_row_fits_the_table() -> None:
    names, row, _ = example()
    table = eval(f"{{{row}}}", {"Method": Method, **names})
    assert list(table) == ["fisher"] and isinstance(table["fisher"], Method) and "fisher" not in METHODS


@pytest.mark.parametrize("name", ["LayerNorm", "degenerate columns", "class of one row", "weighted", "3 targets"])
@pytest.mark.filterwarnings("ignore:not erased")
def test_it_obeys_the_laws(name: str) -> None:
    names, _, row = example()
    method = eval(f"[{row}]", {"Method": cases.Method, **names})[0]
    for law in ERASER_LAWS:
        law(method, HARD[name]())


def test_it_is_what_it_says() -> None:
    data = cases.classes(500, 6, 3)
    moments = data.moments()
    eraser = example()[0]["fisher"](moments, shrinkage=False)
    discriminants = torch.linalg.solve(moments.covariance, moments.class_mean_differences.mT)
    basis = torch.linalg.svd(discriminants)[0][:, :2]
    within(eraser.left @ eraser.right - basis @ basis.mT, 1e-9, "projection")
