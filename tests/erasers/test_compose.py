"""`Eraser.compose`: two erasers as one."""

from __future__ import annotations

import cases
import pytest
import torch
from laws import within

from leace_fast import Eraser, Moments, leace
from leace_fast.methods import mean_projection, orth, random_subspace


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("second", [leace, orth, mean_projection, lambda m: random_subspace(m, 3, seed=1)])
@pytest.mark.parametrize("first", [leace, orth, mean_projection, lambda m: random_subspace(m, 2)])
def test_is_one_after_the_other(first, second, offset: float) -> None:
    data, other = cases.classes(300, 9, 3), cases.classes(300, 9, 2, seed=5)
    x = data.x + offset
    one = first(Moments(9, 3).update(x, data.y))
    two = second(Moments(9, 2).update(x + 3 * other.y[:, None] * torch.linspace(-1, 1, 9), other.y))
    try:
        both = one.compose(two)
    except ValueError:
        pytest.fail("directions are independent: a fixed point exists")
    assert both.rank == one.rank + two.rank and both.dim == 9
    within(both(x) - two(one(x)), 1e-10 * (1 + offset), "rows")
    assert both.method == f"{one.method} + {two.method}"


def test_rank_is_that_of_the_whole() -> None:
    moments = cases.classes(300, 9, 3).moments()
    eraser = leace(moments)
    twice = eraser.compose(eraser)
    assert twice.rank == 2
    within(twice.left @ twice.right - eraser.left @ eraser.right, 1e-12, "erasing twice is erasing once")
    nothing = Eraser(torch.zeros(9, 0, dtype=torch.float64), torch.zeros(0, 9, dtype=torch.float64))
    for both in (eraser.compose(nothing), nothing.compose(eraser)):
        within(both.left @ both.right - eraser.left @ eraser.right, 1e-12, "and nothing")
    assert nothing.compose(nothing).rank == 0 and nothing.compose(nothing).mean is None
    undone = eraser.scaled(2.0).compose(eraser.scaled(2.0))
    assert undone.rank == 0, "a reflection is an involution"


def test_associates_and_keeps_dtype_and_site() -> None:
    a, b, c = (random_subspace(cases.classes(300, 9, 3, seed=s).moments(), 2, seed=s) for s in range(3))
    x = cases.classes(50, 9, 2).x
    within(a.compose(b).compose(c)(x) - a.compose(b.compose(c))(x), 1e-12, "rows")
    single = a.to(dtype=torch.float32).with_site("here")
    assert single.compose(single).dtype == torch.float32 and single.compose(b).dtype == torch.float64
    assert single.compose(b).site == "here"
    linear = mean_projection(cases.classes(300, 9, 3).moments())
    assert linear.compose(linear).mean is None and linear.compose(b).mean is not None


def test_parallel_planes_are_refused() -> None:
    e = torch.eye(3, dtype=torch.float64)
    one = Eraser(e[:, :1], e[:1], torch.zeros(3))
    same = Eraser(e[:, :1], e[:1], torch.ones(3))
    within(one.compose(same)(e) - same(one(e)), 1e-15, "the same plane, moved along its own direction")
    oblique = Eraser(e[:, :1] + e[:, 1:2], e[:1], torch.ones(3))
    with pytest.raises(ValueError, match="parallel and apart, so that no point stays where it is: erase both"):
        one.compose(oblique)


def test_refuses_what_does_not_fit() -> None:
    eraser = Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1])
    with pytest.raises(TypeError, match="got int, expected an Eraser"):
        eraser.compose(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the widths differ: 3 here, 4 there"):
        eraser.compose(Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1]))
