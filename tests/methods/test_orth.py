"""The orthogonal projections of a concept: `orth` and `mean_projection`."""

from __future__ import annotations

import cases
import pytest
import torch
from laws import within

from leace_fast import METHODS, Moments, leace
from leace_fast.methods import mean_projection, orth

METHODS_OF_FILE = [orth, mean_projection]


@pytest.mark.parametrize("method", METHODS_OF_FILE)
@pytest.mark.parametrize("num_classes", [2, 5])
def test_is_the_projection_off_the_differences_of_class_means(method, num_classes: int) -> None:
    data = cases.classes(500, 9, num_classes)
    moments = data.moments()
    eraser = method(moments)
    means = torch.stack([data.x[data.y == j].mean(0) for j in range(num_classes)])
    basis = torch.linalg.svd((means - means[0])[1:].mT, full_matrices=False)[0]
    within(eraser.left @ eraser.right - basis @ basis.mT, 1e-12, "projection")
    within(eraser.right - eraser.left.mT, 1e-14, "an orthogonal projection is symmetric")
    expected = data.x - (data.x - (moments.mean if method is orth else 0)) @ basis @ basis.mT
    within(eraser(data.x) - expected, 1e-11, "rows")
    assert eraser.method in METHODS and METHODS[eraser.method].fit is method


def test_of_targets_is_that_of_the_cross_covariance() -> None:
    data = cases.targets(500, 9, 3)
    x, z = data.x - data.x.mean(0), data.y - data.y.mean(0)
    basis = torch.linalg.svd(x.mT @ z, full_matrices=False)[0]
    within(orth(data.moments()).left @ orth(data.moments()).right - basis @ basis.mT, 1e-9, "projection")
    with pytest.raises(ValueError, match="real-valued targets, expected classes: use orth"):
        mean_projection(data.moments())


@pytest.mark.parametrize("method", METHODS_OF_FILE)
def test_report_is_true(method) -> None:
    data = cases.classes(800, 7, 3)
    eraser = method(data.moments())
    report = eraser.report
    assert report is not None and (report.method, report.rank, report.rows) == (eraser.method, 2, 800)
    assert report.change == pytest.approx(float((eraser(data.x) - data.x).square().sum(1).mean()), rel=1e-9)
    assert report.change >= leace(data.moments(), shrinkage=False).report.change  # type: ignore[union-attr]
    assert "ridge" not in str(report), "no correlation matrix was factored"
    assert type(report).from_dict(report.to_dict()) == report


def test_rank_drops_the_largest_singular_values() -> None:
    """A rare class far away: by covariance it counts for little, among class means as much as any."""
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([torch.arange(2000) % 2, torch.full((4,), 2)])
    x = 0.1 * torch.randn(2004, 6, generator=generator, dtype=torch.float64)
    x[:, 0] += 2.0 * (y == 1)
    x[:, 4] += 20.0 * (y == 2)
    moments = Moments(6, 3).update(x, y)
    by_covariance, by_mean = orth(moments, rank=1), mean_projection(moments, rank=1)
    assert by_covariance.left[0].abs() > 0.99 and by_mean.left[4].abs() > 0.99
    for eraser in (by_covariance, by_mean):
        assert eraser.report is not None
        assert eraser.report.not_erased == ("1 of 2 directions: rank=1 was asked for",)
    cross = torch.linalg.svd(moments.cross_covariance)[0][:, :1]
    within(by_covariance.left @ by_covariance.right - cross @ cross.mT, 1e-12, "projection")


@pytest.mark.parametrize("method", METHODS_OF_FILE)
@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_refuses_a_rank_out_of_range(method, rank) -> None:
    with pytest.raises(ValueError, match="expected a positive integer or None"):
        method(cases.classes(100, 4, 2).moments(), rank=rank)


@pytest.mark.parametrize("method", METHODS_OF_FILE)
def test_names_what_it_cannot_erase(method) -> None:
    data = cases.classes(300, 6, 2)
    with pytest.warns(UserWarning, match="not erased: class 2: it has no rows"):
        eraser = method(Moments(6, 3).update(data.x, data.y))
    assert eraser.rank == 1 and eraser.report.not_erased == ("class 2: it has no rows",)
    with pytest.raises(ValueError, match="only class 0 has rows"):
        method(Moments(6, 2).update(data.x, torch.zeros(300, dtype=torch.int64)))
