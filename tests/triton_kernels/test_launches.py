"""Arguments of kernels by name: in their order, each exactly once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from leace_fast.triton_kernels import launches


def add_rows(x: Any, rows: Any, width: Any, TILE: Any) -> None: ...


KERNEL = SimpleNamespace(fn=add_rows, arg_names=["x", "rows", "width", "TILE"])
FIXED = {"width": 8, "TILE": 16, "unused": 0}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(launches, "launch", lambda *what: found.append(what))
    return found


def test_arguments_stand_in_order(launched: list[Any]) -> None:
    kernel = launches.Prepared(KERNEL, FIXED, warps=8)
    kernel((3,), rows=5, x="one")
    kernel((4, 1), x="two", rows=6)
    assert launched == [(KERNEL, (3,), ["one", 5, 8, 16], 8), (KERNEL, (4, 1), ["two", 6, 8, 16], 8)]


def test_its_own_values_come_before_those_of_all(launched: list[Any]) -> None:
    launches.Prepared(KERNEL, FIXED, TILE=32)((1,), x="x", rows=1)
    assert launched[0][2] == ["x", 1, 8, 32]


@pytest.mark.parametrize("others", [{"x": 1}, {"x": 1, "rows": 2, "width": 3}, {"x": 1, "row": 2}], ids=str)
def test_names_that_do_not_fit_are_refused(launched: list[Any], others: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"add_rows takes \['rows', 'x'\], got"):
        launches.Prepared(KERNEL, FIXED)((1,), **others)
    assert not launched


def test_a_value_that_the_kernel_has_no_place_for_is_refused() -> None:
    with pytest.raises(TypeError, match=r"add_rows has no \['STEP'\]"):
        launches.Prepared(KERNEL, FIXED, STEP=4)
