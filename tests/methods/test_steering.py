"""Maps that move a concept somewhere: `switch`, `ace` and `difference_in_means`."""

from __future__ import annotations

import cases
import pytest
import torch
from laws import within

from leace_fast import Moments, Scrubber, leace
from leace_fast.methods import ace, difference_in_means, fixed_direction, switch


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_reflection_exchanges_the_class_means_and_undoes_itself(offset: float) -> None:
    data = cases.classes(900, 8, 2)
    x = data.x + offset
    moments = Moments(8, 2).update(x, data.y)
    eraser = switch(moments)
    assert abs(float(moments.class_weights[0] / moments.total_weight) - 0.5) > 0.1, "classes of unlike sizes"
    within(
        Moments(8, 2).update(eraser(x), data.y).class_means - moments.class_means.flip(0), 1e-12 * (1 + offset), "means"
    )
    within(eraser(eraser(x)) - x, 1e-12 * (1 + offset), "a reflection is an involution")
    base = leace(moments)
    within(eraser.left @ eraser.right - 2 * base.left @ base.right, 1e-12, "twice the erasure")


def test_reflection_is_the_switch_of_the_paper_about_the_midpoint() -> None:
    """A = I - 2 W^+ (W Sxz)(W Sxz)^+ W with W the inverse root of the covariance: cov(e(x), z) = -cov(x, z)."""
    data = cases.classes(900, 8, 2)
    moments = data.moments()
    values, vectors = torch.linalg.eigh(moments.covariance)
    whiten, unwhiten = (vectors * values**power @ vectors.mT for power in (-0.5, 0.5))
    seen = whiten @ moments.cross_covariance[:, 1:]
    paper = torch.eye(8, dtype=torch.float64) - 2 * unwhiten @ seen @ torch.linalg.pinv(seen) @ whiten
    switched, about_mean = switch(moments, shrinkage=False), leace(moments, shrinkage=False).scaled(2.0)
    for eraser in (switched, about_mean):
        within(torch.eye(8, dtype=torch.float64) - eraser.left @ eraser.right - paper, 1e-9, "linear part")
        within(data.moments(eraser(data.x)).cross_covariance + moments.cross_covariance, 1e-12, "covariance")
    expected = (data.x - moments.mean) @ paper.mT + moments.mean
    within(about_mean(data.x) - expected, 1e-9, "the paper's own is leace, scaled")
    assert switched.report is not None
    assert switched.report.change > float((about_mean(data.x) - data.x).square().sum(1).mean()), "it is the nearest"


@pytest.mark.parametrize("to", [0, 2])
def test_all_classes_move_to_one(to: int) -> None:
    data = cases.classes(900, 8, 3)
    moments = data.moments()
    eraser = switch(moments, to=to)
    after = data.moments(eraser(data.x))
    within(after.class_means - moments.class_means[to], 1e-12, "means")
    base, rows = leace(moments), data.x[data.y == to]
    moved = (base(rows) - rows).square().mean() - (eraser(rows) - rows).square().mean()
    assert moved > 0, "rows of the class itself change less than when they are erased"
    assert eraser.report is not None
    assert eraser.report.change == pytest.approx(float((eraser(data.x) - data.x).square().sum(1).mean()), rel=1e-9)


def test_ace_replaces_the_concept_by_the_reference() -> None:
    data = cases.classes(900, 8, 2)
    moments = data.moments()
    means = moments.class_means
    direction = (means[1] - means[0]) / (means[1] - means[0]).norm()
    for strength in (0.0, 1.0, -0.5):
        eraser = ace(moments, 0, strength=strength)
        along = (means[0] + strength * (means[1] - means[0])) @ direction
        within(eraser(data.x) @ direction - along, 1e-12, "the part along the direction")
        off = torch.eye(8, dtype=torch.float64) - torch.outer(direction, direction)
        within((eraser(data.x) - data.x) @ off, 1e-12, "all else")
    assert ace(moments, 1).rank == 1 and ace(moments).method == "ace"


def test_ace_of_several_classes() -> None:
    data = cases.classes(900, 8, 4)
    moments = data.moments()
    after = data.moments(ace(moments, 2)(data.x))
    within(after.class_means - moments.class_means[2], 1e-12, "means")
    to = data.moments(ace(moments, 2, to=3, strength=1.0)(data.x))
    within(to.class_means - moments.class_means[3], 1e-12, "means")
    with pytest.raises(ValueError, match=r"classes \[0, 1, 3\] could be where strength=1.0 leads: say which with to="):
        ace(moments, 2, strength=1.0)


def test_difference_in_means_is_that_of_two_classes() -> None:
    data = cases.classes(900, 8, 4)
    moments = data.moments()
    means = moments.class_means
    eraser = difference_in_means(moments, 3, 1)
    direction = (means[3] - means[1]) / (means[3] - means[1]).norm()
    within(eraser.left.flatten() - direction, 1e-12, "direction")
    within(eraser(data.x) @ direction, 1e-12, "no offset: nothing is left along it")
    assert eraser.mean is None and eraser.report is not None
    assert eraser.report.not_erased == ("class 0: not asked for", "class 2: not asked for")


def test_one_direction_at_all_sites() -> None:
    sites = {name: cases.classes(300, 8, 2, seed=seed).moments() for seed, name in enumerate(["a", "b", "c"])}
    erasers = fixed_direction(sites, "b")
    expected = difference_in_means(sites["b"])
    assert list(erasers) == ["a", "b", "c"] and all(eraser.site == name for name, eraser in erasers.items())
    assert all(torch.equal(eraser.left, expected.left) for eraser in erasers.values())
    assert len(Scrubber(erasers)) == 3
    with pytest.raises(ValueError, match="no site 'd', expected one of a, b, c"):
        fixed_direction(sites, "d")
    with pytest.raises(ValueError, match="c have another width than a"):
        fixed_direction({"a": sites["a"], "c": cases.classes(300, 9, 2).moments()}, "a")


def test_refusals() -> None:
    data, targets = cases.classes(300, 6, 3), cases.targets(300, 6, 1).moments()
    moments = data.moments()
    with pytest.raises(ValueError, match="3 classes have rows, a reflection needs two: say to which class"):
        switch(moments)
    for method in (switch, ace, difference_in_means):
        with pytest.raises(ValueError, match="real-valued targets, expected classes"):
            method(targets)
    with pytest.raises(ValueError, match="to is 3, expected a class from 0 to 2"):
        switch(moments, to=3)
    with pytest.raises(ValueError, match="reference is True, expected a class"):
        ace(moments, True)
    gap = Moments(6, 4).update(data.x, data.y)
    with pytest.warns(UserWarning, match="class 3: it has no rows"), pytest.raises(ValueError, match="has no rows"):
        switch(gap, to=3)
    same = Moments(3, 2).update(torch.ones(4, 3), torch.arange(4) % 2)
    with pytest.raises(ValueError, match="have the same mean: there is no direction"):
        difference_in_means(same)
