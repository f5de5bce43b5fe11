"""Optimal transport of classes: `quadratic`, `mimic` and `quadratic_editor`."""

from __future__ import annotations

import cases
import pytest
import torch
from laws import within
from torch import Tensor

from leace_fast import ConditionalEraser, Moments
from leace_fast.methods import mimic, oracle, quadratic, quadratic_editor


def unlike(num_classes: int, rows: int = 3000, dim: int = 7, condition: float = 100.0) -> cases.Data:
    """Return classes with covariances of their own, at an offset."""
    data = cases.classes(rows, dim, num_classes, condition=condition)
    generator = torch.Generator().manual_seed(1)
    maps = torch.eye(dim, dtype=torch.float64) + 0.2 * torch.randn(
        num_classes, dim, dim, generator=generator, dtype=torch.float64
    )
    return cases.Data(torch.einsum("nd,nde->ne", data.x, maps[data.y]) + 5, data.y, data.options)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT


def moments_of(data: cases.Data, x: Tensor | None = None) -> Moments:
    return data.moments(x, per_class=True)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("condition", [10.0, 1e5])
def test_mean_and_covariance_of_all_classes_become_one(num_classes: int, condition: float) -> None:
    data = unlike(num_classes, condition=condition)
    moments = moments_of(data)
    eraser = quadratic(moments)
    after = moments_of(data, eraser(data.x, data.y))
    scale = after.variance.sqrt()
    within(after.class_means - moments.mean, 1e-11 * (scale + moments.mean.abs()), "class means: the mean of all rows")
    spread = (after.class_covariances - after.covariance) / torch.outer(scale, scale)
    within(spread, 1e-13 * condition, "class covariances")
    assert eraser.report is not None and not eraser.report.not_erased
    change = float((eraser(data.x, data.y) - data.x).square().sum(1).mean())
    assert eraser.report.change == pytest.approx(change, rel=1e-9)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_goes_to_the_barycentre(num_classes: int) -> None:
    """The fixed point of Alvarez-Esteban et al. with the classes' shares, by square roots, in many steps."""
    data = unlike(num_classes)
    moments = moments_of(data)
    shares, covariances = moments.class_weights / moments.total_weight, moments.class_covariances
    centre = covariances.mean(0)
    for _ in range(300):
        half = root(centre)
        step = sum(float(w) * root(half @ s @ half) for w, s in zip(shares, covariances, strict=True))
        assert isinstance(step, Tensor)
        inverse = torch.linalg.inv(half)
        centre = inverse @ step @ step @ inverse
    after = moments_of(data, quadratic(moments)(data.x, data.y)).covariance
    within((after - centre) / centre.diagonal().mean(), 1e-9, "covariance")


def test_no_common_gaussian_is_nearer() -> None:
    """Maps to a covariance a little off the barycentre change x more."""
    data = unlike(3)
    moments = moments_of(data)
    best = quadratic(moments)
    assert best.report is not None and best.maps is not None
    goal = moments_of(data, best(data.x, data.y)).covariance
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        off = torch.eye(7, dtype=torch.float64) + 0.05 * torch.randn(7, 7, generator=generator, dtype=torch.float64)
        other, cost = off @ goal @ off.mT, 0.0
        for j in range(3):
            s = moments.class_covariances[j]
            share = float(moments.class_weights[j] / moments.total_weight)
            half = root(s)
            cost += share * float((s + other - 2 * root(half @ other @ half)).trace())
            cost += share * float((moments.class_means[j] - moments.mean).square().sum())
        assert cost > best.report.change


@pytest.mark.parametrize("num_classes", [2, 5])
def test_no_quadratic_classifier_can_tell(num_classes: int) -> None:
    """Quadratic discriminant analysis is left with the shares of the classes, where equal means alone leave it more."""
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    metrics = pytest.importorskip("sklearn.metrics")
    data = unlike(num_classes)
    moments = moments_of(data)

    def loss(rows: Tensor) -> float:
        model = analysis.QuadraticDiscriminantAnalysis().fit(rows.numpy(), data.y.numpy())
        return float(metrics.log_loss(data.y.numpy(), model.predict_proba(rows.numpy())))

    shares = moments.class_weights / moments.total_weight
    constant = -float((shares * shares.log()).sum())
    # scikit-learn's covariances are over the rows less one: those of classes of unlike sizes differ a little.
    assert loss(quadratic(moments)(data.x, data.y)) == pytest.approx(constant, rel=1e-4)
    assert loss(oracle(moments)(data.x, data.y)) < 0.9 * constant


@pytest.mark.parametrize("to", [0, 2])
def test_mimic_gives_every_class_the_gaussian_of_one(to: int) -> None:
    data = unlike(3)
    moments = moments_of(data)
    eraser = mimic(moments, to)
    out = eraser(data.x, data.y)
    after = moments_of(data, out)
    scale = moments.class_covariances[to].diagonal().sqrt()
    within((after.class_means - moments.class_means[to]) / scale, 1e-11, "means")
    gap = (after.class_covariances - moments.class_covariances[to]) / torch.outer(scale, scale)
    within(gap, 1e-10, "covariances")
    same = data.y == to
    assert torch.equal(out[same], data.x[same]), "rows of class `to` stay to the bit"
    assert eraser.maps is not None
    within(eraser.maps - eraser.maps.mT, 1e-10 * eraser.maps.abs().max(), "an optimal map is symmetric")
    assert (torch.linalg.eigvalsh(eraser.maps) > 0).all(), "and the gradient of something convex"


def test_editor_holds_every_mimic_and_goes_back() -> None:
    data = unlike(3)
    moments = moments_of(data)
    editor = quadratic_editor(moments)
    for to in range(3):
        within(editor(data.x, data.y, to) - mimic(moments, to)(data.x, data.y), 1e-9, "rows")
    goal = (data.y + 1) % 3
    there = editor(data.x, data.y, goal)
    within(editor(there, goal, data.y) - data.x, 1e-8, "there and back")
    assert torch.equal(editor(data.x, data.y, data.y), data.x)
    assert editor.report is not None and editor.report.change > 0


def test_too_few_rows_are_named() -> None:
    data = unlike(2, rows=400, dim=7)
    y = data.y.clone()
    y[:5] = 2
    moments = Moments(7, 3, per_class=True).update(data.x, y)
    with pytest.warns(UserWarning, match="class 2: its covariance is off by .*, it has 5 rows"):
        eraser = quadratic(moments)
    assert eraser.report is not None and len(eraser.report.not_erased) == 1
    with pytest.warns(UserWarning, match="class 2: its covariance is off by .*, it has 5 rows") as warned:
        quadratic_editor(moments)
    assert warned[0].filename == __file__, "the warning points to the line that asked"
    with pytest.warns(UserWarning, match="class 3: it has no rows"):
        eraser = quadratic(Moments(7, 4, per_class=True).update(data.x, data.y % 3))
    rows = data.x[:4]
    assert torch.equal(eraser(rows, torch.full((4,), 3)), rows)


def test_constant_columns_stay() -> None:
    data = unlike(2)
    data.x[:, 3] = 2.5
    eraser = quadratic(moments_of(data))
    assert eraser.report is not None and not eraser.report.not_erased
    within(eraser(data.x, data.y)[:, 3] - 2.5, 1e-12, "column")


@pytest.mark.parametrize("method", [quadratic, mimic, quadratic_editor])
def test_refusals(method) -> None:
    data = unlike(2)
    with pytest.raises(ValueError, match="make the moments with per_class=True"):
        method(data.moments())
    with pytest.raises(ValueError, match="ridge is -1.0, expected a finite number >= 0"):
        method(moments_of(data), ridge=-1.0)
    with pytest.raises(ValueError, match="to is 2, expected a class from 0 to 1"):
        mimic(moments_of(data), 2)


def test_float32_rows() -> None:
    data = unlike(3, condition=10.0)
    single = data.to(torch.float32)
    eraser = quadratic(moments_of(single))
    after = moments_of(data, eraser(data.x, data.y))
    scale = after.variance.sqrt()
    within((after.class_covariances - after.covariance) / torch.outer(scale, scale), 1e-3, "class covariances")
    assert isinstance(eraser, ConditionalEraser) and eraser(single.x, data.y).dtype == torch.float32
