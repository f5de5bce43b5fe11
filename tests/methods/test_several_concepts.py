"""Several concepts of the same rows erased at once."""

from __future__ import annotations

import cases
import pytest
import torch
from laws import within
from torch import Tensor

from leace_fast import Moments, leace
from leace_fast.methods import orth


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Return rows with a class of three, and a target of their own that also depends on the class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(1200) % 3
    z = torch.randn(1200, 1, generator=generator, dtype=torch.float64) + y[:, None]
    x = cases.correlated(1200, 8, generator) + torch.randn(3, 8, generator=generator, dtype=torch.float64)[y]
    return x + z * torch.randn(1, 8, generator=generator, dtype=torch.float64), y, z


@pytest.mark.parametrize("method", [leace, orth])
def test_all_of_them_are_erased(method) -> None:
    x, y, z = rows()
    each = [Moments(8, 3).update(x, y), Moments(8, target_dim=1).update(x, z)]
    eraser = method(each)
    assert eraser.rank == 3
    assert eraser.report.concepts == ("concept 0: 2 directions", "concept 1: 1 direction")
    within(Moments(8, 3).update(eraser(x), y).class_mean_differences, 1e-13, "class means")
    within(Moments(8, target_dim=1).update(eraser(x), z).cross_covariance, 1e-13, "covariance with the target")
    alone = method(each[0])
    assert Moments(8, target_dim=1).update(alone(x), z).cross_covariance.abs().max() > 0.01
    assert alone.report.concepts == () and alone.report.change < eraser.report.change


def test_is_the_leace_of_the_targets_side_by_side() -> None:
    """Two concepts erased at once are one concept whose targets are those of both."""
    x, y, z = rows()
    both = torch.cat([torch.nn.functional.one_hot(y, 3)[:, 1:].double(), z], 1)
    union = leace([Moments(8, 3).update(x, y), Moments(8, target_dim=1).update(x, z)])
    one = leace(Moments(8, target_dim=3).update(x, both))
    within(union.left @ union.right - one.left @ one.right, 1e-10, "eraser")


def test_directions_in_common_count_once() -> None:
    x, y, _ = rows()
    coarse = (y == 2).long()  # its difference of means lies among those of y
    eraser = leace([Moments(8, 3).update(x, y), Moments(8, 2).update(x, coarse)])
    assert eraser.rank == 2 and eraser.report is not None
    assert eraser.report.concepts == ("concept 0: 2 directions", "concept 1: 1 direction")
    same = leace(Moments(8, 3).update(x, y))
    within(eraser.left @ eraser.right - same.left @ same.right, 1e-10, "eraser")


def test_mean_and_covariance_are_those_of_the_most_rows() -> None:
    """Labels of one concept are known for some rows only; the classes are equal on those that are known."""
    x, y, _ = rows()
    some = torch.where(torch.arange(1200) < 500, (x[:, 0] > 1).long(), -100)
    few, many = Moments(8, 2).update(x, some), Moments(8, 3).update(x, y)
    eraser = leace([few, many])
    within(eraser.mean - many.mean, 1e-15, "mean")  # type: ignore[operator]
    assert eraser.report is not None and eraser.report.rows == 1200
    within(Moments(8, 2).update(eraser(x), some).class_mean_differences, 1e-13, "class means")


def test_what_is_not_erased_says_of_which_concept() -> None:
    x, y, _ = rows()
    with pytest.warns(UserWarning, match="not erased: concept 1: class 2: it has no rows"):
        leace([Moments(8, 3).update(x, y), Moments(8, 3).update(x, (y > 0).long())])
    strongest = leace([Moments(8, 3).update(x, y), Moments(8, 2).update(x, (y > 0).long())], rank=1)
    assert strongest.rank == 1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ValueError, "no moments, expected those of at least one"),
        ("leace", TypeError, "expected Moments, or a sequence of Moments"),
        ([Moments(3, 2), torch.ones(3)], TypeError, "expected Moments, or a sequence of Moments"),
        (None, TypeError, "got None, expected Moments"),
        ([Moments(3, 2), Moments(4, 2)], ValueError, "differ in dim: 3, 4, expected those of the same x"),
        ([Moments(3, 2), Moments(3, 2)], ValueError, "the moments hold no rows"),
    ],
)
@pytest.mark.parametrize("method", [leace, orth])
def test_refuses_what_is_no_moments(method, given, error, message) -> None:
    with pytest.raises(error, match=message):
        method(given)
