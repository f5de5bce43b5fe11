"""Iterative null-space projection: least squares on the moments, others by passes over the rows."""

from __future__ import annotations

import cases
import numpy
import pytest
import torch
from laws import within
from torch import Tensor

from leace_fast import Moments
from leace_fast.methods import inlp, mean_projection


def by_passes(x: Tensor, z: Tensor, iterations: int) -> Tensor:
    """Return the basis of INLP with classifiers that least squares fits on the projected rows, by NumPy."""
    rows, targets = (x - x.mean(0)).numpy(), (z - z.mean(0)).numpy()
    basis = numpy.zeros((x.shape[1], 0))
    for _ in range(iterations):
        projected = rows - rows @ basis @ basis.T
        weights = numpy.linalg.lstsq(projected, targets, rcond=1e-10)[0]
        left, values, _ = numpy.linalg.svd(weights - basis @ (basis.T @ weights), full_matrices=False)
        basis = numpy.concatenate([basis, left[:, values > 1e-9 * values[0]]], 1)
    return torch.from_numpy(basis)


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("kind", [2, 4, "targets"])
def test_moments_give_what_the_passes_give(kind: int | str, iterations: int) -> None:
    data = cases.targets(600, 12, 2) if kind == "targets" else cases.classes(600, 12, int(kind), noise=3.0)
    z = data.y if kind == "targets" else torch.nn.functional.one_hot(data.y, int(kind)).double()
    eraser = inlp(data.moments(), classifier="least squares", max_iterations=iterations, tolerance=0.0, shrinkage=False)
    basis = by_passes(data.x, z, iterations)
    assert eraser.rank == basis.shape[1] == (iterations * (2 if kind == "targets" else int(kind) - 1))
    within(eraser.left @ eraser.right - basis @ basis.mT, 1e-6, "projection")


def test_discriminant_analysis_has_the_same_span() -> None:
    """Within-class covariance instead of that of all rows: the same directions, so the same eraser."""
    data = cases.classes(600, 8, 3, noise=3.0)
    moments = data.moments(per_class=True)
    shares = moments.class_weights / moments.total_weight
    within_classes = torch.einsum("k,kij->ij", shares, moments.class_covariances)
    readers = torch.linalg.solve(within_classes, moments.class_mean_differences.mT)
    basis = torch.linalg.svd(readers)[0][:, :2]
    eraser = inlp(data.moments(), max_iterations=1, tolerance=0.0)
    within(eraser.left @ eraser.right - basis @ basis.mT, 1e-9, "projection")


def test_rank_grows_until_little_is_left() -> None:
    data = cases.classes(3000, 16, 2, noise=3.0)
    moments = data.moments()
    ranks = [inlp(moments, tolerance=tolerance).rank for tolerance in (0.3, 1e-2, 1e-4)]
    assert ranks[0] < ranks[1] < ranks[2] <= 16
    for tolerance in (0.3, 1e-2, 1e-4):
        eraser = inlp(moments, tolerance=tolerance)
        out = eraser(data.x) - data.x.mean(0)
        weights = torch.linalg.lstsq(out, (data.y - data.y.double().mean()), driver="gelsd").solution
        explained = float((out @ weights).var() / data.y.double().var())
        assert explained <= tolerance * 1.01
        assert eraser.report is not None and "still explains" in eraser.report.not_erased[-1]
    assert inlp(moments, rank=3, tolerance=0.0).rank == 3
    projection = inlp(moments).left @ inlp(moments).right
    within(projection @ projection - projection, 1e-12, "idempotent")


def batches(data: cases.Data, size: int = 256) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data.x.float().split(size), data.y.split(size), strict=True))


def accuracy(x: Tensor, y: Tensor) -> float:
    """Return the accuracy of a fresh logistic regression on its own rows."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    scaled = ((x - x.mean(0)) / x.std(0).clamp_min(1e-9)).numpy()
    return float(linear_model.LogisticRegression(C=1e4, max_iter=500).fit(scaled, y.numpy()).score(scaled, y.numpy()))


def skewed() -> cases.Data:
    """Return two classes whose means differ along other directions than their best classifier."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(2000) % 2
    x = cases.correlated(2000, 10, generator, condition=100.0) + 0.3 * y[:, None] * torch.linspace(1, 0.3, 10)
    return cases.Data(x.double(), y, {"num_classes": 2})


@pytest.mark.parametrize("classifier", ["logistic", "svm"])
def test_needs_many_steps_where_mean_projection_needs_one(classifier) -> None:
    data = skewed()
    assert accuracy(data.x, data.y) > 0.7
    one = mean_projection(data.moments())
    assert one.rank == 1 and accuracy(one(data.x), data.y) < 0.52, "majority accuracy in one step"
    ranks, left = [], []
    for iterations in (1, 2, 4):
        eraser = inlp(batches(data), classifier=classifier, max_iterations=iterations, rank=4)
        ranks.append(eraser.rank)
        left.append(accuracy(eraser(data.x), data.y))
    assert ranks == [1, 2, 4], "the rank grows with every step"
    assert left[0] > 0.6 and left == sorted(left, reverse=True), left


@pytest.mark.parametrize("classifier", ["logistic", "svm"])
def test_each_direction_is_that_of_a_classifier_on_what_is_left(classifier) -> None:
    """The next direction is nearly the weight of a logistic regression that is fitted to the end on projected rows."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = skewed()
    three = inlp(batches(data), classifier=classifier, rank=3).left
    deviation = data.x.std(0)
    for done in (1, 2):
        rows = (data.x - data.x.mean(0)) @ (torch.eye(10, dtype=torch.float64) - three[:, :done] @ three[:, :done].mT)
        model = linear_model.LogisticRegression(C=1e4, max_iter=500).fit((rows / deviation).numpy(), data.y.numpy())
        weight = torch.from_numpy(model.coef_[0]) / deviation
        weight -= three[:, :done] @ (three[:, :done].mT @ weight)
        assert float(weight @ three[:, done] / weight.norm()) > 0.95


def test_rows_of_several_classes_and_of_ignored_labels() -> None:
    data = cases.classes(900, 8, 3, noise=2.0)
    hidden = torch.where(torch.arange(900) % 3 == 0, -100, data.y)
    noisy = torch.where((hidden == -100)[:, None], 1e6, data.x)
    eraser = inlp(batches(cases.Data(noisy, hidden, data.options)), max_iterations=1)
    kept = hidden != -100
    assert eraser.rank in (2, 3) and eraser.report is not None and eraser.report.rows == int(kept.sum())
    within(eraser.mean - data.x[kept].float().double().mean(0), 1e-12, "mean")  # type: ignore[operator]
    expected = float((eraser(data.x[kept]) - data.x[kept]).square().sum(1).mean())
    assert eraser.report.change == pytest.approx(expected, rel=1e-3)
    again = inlp(batches(cases.Data(noisy, hidden, data.options)), max_iterations=1)
    assert torch.equal(eraser.left, again.left), "the same seed gives the same eraser"
    assert inlp(batches(data), rank=2, max_iterations=9).rank == 2


def test_stops_where_nothing_is_to_be_told() -> None:
    x = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(4000) % 2
    eraser = inlp([(x, y)], tolerance=0.05)
    assert eraser.rank == 0 and torch.equal(eraser(x), x)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (lambda: cases.classes(90, 4, 2).moments(), {"classifier": "svm"}, ValueError, "expected 'least squares'"),
        (lambda: [(torch.ones(2, 3), torch.arange(2))], {"classifier": "lda"}, ValueError, "expected 'logistic' or"),
        (lambda: iter([(torch.ones(2, 3), torch.arange(2))]), {}, TypeError, "gone over again and again"),
        (lambda: 3, {}, TypeError, "gone over again and again"),
        (lambda: [(torch.ones(2, 3), torch.zeros(2).long())], {}, ValueError, "2 rows of 1 classes, expected rows"),
        (list, {}, ValueError, "0 rows of 0 classes"),
        (lambda: [(torch.ones(2, 3), torch.ones(2))], {}, TypeError, "y has dtype torch.float32"),
        (lambda: [(torch.ones(2, 3), torch.ones(3).long())], {}, ValueError, r"y \(3,\), expected \(..., d\)"),
        (lambda: [(torch.ones(2, 3).long(), torch.arange(2))], {}, TypeError, "x floating"),
        (lambda: [(torch.ones(2, 3) * torch.nan, torch.arange(2))], {}, ValueError, "x holds NaN or Inf"),
        (lambda: [(torch.ones(2, 3), torch.tensor([0, -1]))], {}, ValueError, "a label is -1"),
        (lambda: cases.classes(90, 4, 2).moments(), {"tolerance": -1.0}, ValueError, "tolerance is -1.0"),
        (lambda: cases.classes(90, 4, 2).moments(), {"max_iterations": 0}, ValueError, "max_iterations is 0"),
        (lambda: cases.classes(90, 4, 2).moments(), {"rank": 0}, ValueError, "rank is 0"),
    ],
)
def test_refusals(data, options, error, message) -> None:
    with pytest.raises(error, match=message):
        inlp(data(), **options)


def test_moments_of_empty() -> None:
    with pytest.raises(ValueError, match="hold no rows"):
        inlp(Moments(3, 2))
