"""What a method cannot erase it names: columns that vary by less than rounding, and directions that rounding hides."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from leace_fast import METHODS, Moments
from leace_fast.methods._method import ROWS, TASK

N = 1200
Y = torch.arange(N) % 2
ONE = Y.double()


def plain(seed: int = 0) -> Tensor:
    x = torch.randn(N, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x[:, 0] += Y
    return x


def fit(name: str, x: Tensor, y: Tensor = Y) -> tuple[Any, list[str]]:
    """Return what a method makes of rows, and what it warned of."""
    if ROWS in METHODS[name].needs:
        pytest.importorskip("datasketches" if name != "rlace" else "torch")
        data: list[Any] = [[(x, y)]]
    else:
        classes: dict[str, Any] = {"num_classes": 2, "per_class": True}
        options: dict[str, Any] = classes if not y.is_floating_point() else {"target_dim": 1}
        data = [Moments(5, **options).update(x, y)]
        if METHODS[name].needs == TASK:
            data.append(Moments(5, target_dim=1).update(x, x[:, 3]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = METHODS[name](*data)
    return made, [str(one.message) for one in told]


HIDDEN: dict[str, Tensor] = {
    "a time in seconds": 1.7e9 + ONE * 1e-6,
    "one unit in the last place": 1.0 + ONE * 2.0**-52,
    "below zero": -1e15 - ONE * 0.5,
    "few rows": 1e12 + 2e-4 * (torch.arange(N) == 7).double(),
}


@pytest.mark.parametrize("column", HIDDEN)
@pytest.mark.parametrize("name", METHODS)
def test_a_column_that_varies_by_less_than_rounding_is_named(name: str, column: str) -> None:
    x = plain()
    x[:, 2] = HIDDEN[column]
    made, told = fit(name, x)
    assert any("column 2 of x varies by less than rounding" in line for line in made.report.not_erased)
    assert any("column 2 of x varies by less than rounding" in line for line in told)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 / 3, -1e100, 7.0, 1e-300])
@pytest.mark.parametrize("name", METHODS)
def test_a_constant_column_is_nothing_to_speak_of(name: str, value: float) -> None:
    x = plain()
    x[:, 2] = value
    made, told = fit(name, x)
    assert not any("column" in line for line in (*made.report.not_erased, *told))


@pytest.mark.parametrize("merged", [1, 2, 7])
def test_constant_columns_of_merged_moments_are_constant(merged: int) -> None:
    x, moments = plain(), Moments(5, 2)
    x[:, 2], x[:, 4] = 0.1, 1e9 / 3
    for rows, labels in zip(x.split(N // merged), Y.split(N // merged), strict=True):
        moments.merge(Moments(5, 2).update(rows, labels))
    assert not METHODS["leace"](moments).report.not_erased


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.targets])
def test_targets_of_a_hidden_column(name: str) -> None:
    x, z = plain(), torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 2] = 1.7e9 + (z > 0).double() * 1e-6
    made, told = fit(name, x, z)
    assert any("column 2" in line for line in made.report.not_erased) and any("column 2" in line for line in told)


def test_columns_whose_squares_are_zero_in_float64() -> None:
    x = plain()
    x[:, 2] = (ONE + 1) * 1e-170
    with pytest.warns(UserWarning, match="vary by less than 1e-145"):
        moments = Moments(5, 2).update(x, Y)
        assert moments.count == N
    with pytest.warns(UserWarning, match="not erased: column 2 of x varies"):
        assert "column 2" in METHODS["leace"](moments).report.not_erased[0]


def test_many_columns_are_one_line() -> None:
    x = torch.cat([plain(), 1e9 + ONE[:, None] * torch.full((12,), 2e-7).double()], 1)
    with pytest.warns(UserWarning, match="columns 5, 6, 7, 8, 9, ... of x \\(12\\) vary by less than rounding"):
        METHODS["leace"](Moments(17, 2).update(x, Y))


@pytest.mark.parametrize("name", ["leace", "orth", "mean_projection", "ace"])
def test_a_direction_that_rounding_hides_is_named(name: str) -> None:
    """Three classes nearly on a line, far from zero: how far they lie off it is less than rounding can tell."""
    y = torch.arange(3000) % 3
    x = torch.randn(1000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).repeat_interleave(3, 0)
    x += 1e6  # rows come three times, once in each class
    x[:, 0] += y * 3
    x[:, 1] += (y == 1) * 3e-10
    moments = Moments(5, 3).update(x, y)
    with pytest.warns(UserWarning, match="less apart than rounding"):
        made = METHODS[name](moments)
    assert made.rank == 1 and "1 of 2 directions: less apart than rounding" in made.report.not_erased


OVERFLOWS: dict[str, dict[str, Any]] = {
    "weights and rows": {"x": 1e150, "weight": 1e100},
    "weights and rows of another size": {"x": 1e140, "weight": 1e20},
    "the heaviest row alone": {"x": 1e150, "weight": 1e9},
}


@pytest.mark.parametrize("name", OVERFLOWS)
@pytest.mark.parametrize("options", [{"num_classes": 2}, {"num_classes": 2, "per_class": True}, {}], ids=str)
def test_weights_times_squares_that_overflow_are_refused(name: str, options: dict[str, Any]) -> None:
    given, moments = OVERFLOWS[name], Moments(3, **options)
    y = torch.arange(10) % 2 if options else None
    moments.update(torch.ones(10, 3), y)
    weight = torch.full((10,), given["weight"], dtype=torch.float64)
    with pytest.raises(ValueError, match="meets a value of .* only ratios of weights count"):
        moments.update(torch.full((10, 3), given["x"], dtype=torch.float64), y, weight=weight)
    assert moments.count == 10 and not moments.variance.any()


def test_targets_that_overflow_are_refused() -> None:
    moments = Moments(2, target_dim=1)
    x, z, weight = (
        torch.ones(4, 2),
        torch.full((4,), 1e149, dtype=torch.float64),
        torch.full((4,), 1e50, dtype=torch.float64),
    )
    with pytest.raises(ValueError, match="meets a value of 1e\\+149"):
        moments.update(x, z, weight=weight)
    assert not moments.count


def test_sums_of_many_rows_that_overflow_are_refused() -> None:
    x = torch.tensor([[1e150], [-1e150]], dtype=torch.float64)
    moments = Moments(1, 2).update(x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="leave the range of float64: multiply x by a constant first"):
        for _ in range(40):
            before = moments.copy()
            moments.merge(moments)
    assert moments.count == before.count and moments.variance.isfinite().all()
