"""R-LACE: at full rank its known optimum; below, a game by steps of low rank that are those of the full matrix."""

from __future__ import annotations

import math

import cases
import pytest
import torch
from laws import within
from torch import Tensor

from leace_fast import METHODS, Moments, leace
from leace_fast.methods import inlp, orth, rlace
from leace_fast.methods._rlace import LowRank

Batches = list[tuple[Tensor, Tensor]]


def problem(num_classes: int, dim: int = 16) -> tuple[Tensor, Tensor, Batches]:
    """Return correlated rows whose class means are a little apart, whole and in batches."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(2000) % num_classes
    means = torch.randn(num_classes, dim, generator=generator, dtype=torch.float64) / dim**0.5
    x = cases.correlated(2000, dim, generator, condition=100.0) + means[y] + 3
    return x, y, list(zip(x.float().split(250), y.split(250), strict=True))


def loss(x: Tensor, y: Tensor) -> float:
    """Return the logistic loss of the best linear classifier of some rows."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    scaled = ((x - x.mean(0)) / x.std(0).clamp_min(1e-9)).numpy()
    model = linear_model.LogisticRegression(C=1e4, max_iter=500).fit(scaled, y.numpy())
    return float(metrics.log_loss(y.numpy(), model.predict_proba(scaled)))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_of_full_rank_it_nears_the_projection_off_the_class_means(num_classes: int) -> None:
    """Any projection that equals the class means makes the best loss that of the constant; no other one does."""
    x, y, batches = problem(num_classes)
    eraser = rlace(batches, num_classes - 1, steps=300)
    closed = orth(Moments(16, num_classes).update(x, y))
    assert smallest_cosine(eraser.left, closed.left) > 0.99, "of the largest angle between the two"
    constant = math.log(num_classes)
    assert loss(x, y) < 0.7 * constant
    assert loss(eraser(x), y) > 0.985 * constant
    within(eraser.right @ eraser.left - torch.eye(eraser.rank), 1e-12, "a projection")
    assert eraser.report is not None and eraser.rank == num_classes - 1
    assert eraser.report.change == pytest.approx(float((eraser(x) - x).square().sum(1).mean()), rel=1e-4)


def smallest_cosine(one: Tensor, two: Tensor) -> float:
    """Return the cosine of the largest angle between the spaces of two sets of columns."""
    return float(torch.linalg.svdvals(torch.linalg.qr(one)[0].mT @ torch.linalg.qr(two)[0])[-1])


def spread(dim: int, largest: float, massive: bool) -> Tensor:
    """Return units of columns (dim,) from 1 to the largest: a single massive one, or all between."""
    units = torch.logspace(0, math.log10(largest), dim, dtype=torch.float64)
    return torch.where(torch.arange(dim) == 5, largest, 1.0).double() if massive else units


@pytest.mark.parametrize("massive", [True, False], ids=["one massive column", "all between"])
@pytest.mark.parametrize("largest", [1.0, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_at_full_rank_it_is_no_worse_than_closed_forms_whatever_the_units(num_classes, largest, massive) -> None:
    """By the training rows' own cross-entropy of the best linear probe after erasure, in nats."""
    x, y, _ = problem(num_classes)
    x = (x - 3) * spread(16, largest, massive)
    eraser = rlace(list(zip(x.split(250), y.split(250), strict=True)), num_classes - 1, steps=300)
    moments = Moments(16, num_classes).update(x, y)
    assert smallest_cosine(eraser.left, moments.class_mean_differences.mT[:, 1:]) > 1 - 1e-12
    erased = loss(eraser(x), y)
    assert loss(x, y) < 0.7 * erased
    for closed in (leace(moments, rank=num_classes - 1), orth(moments, rank=num_classes - 1)):
        assert erased >= loss(closed(x), y) - 1e-9
    assert erased == pytest.approx(math.log(num_classes), abs=1e-9)
    means = Moments(16, num_classes).update(eraser(x), y).class_mean_differences
    within(means / moments.variance.sqrt(), 1e-12, "class means")
    assert eraser.report is not None and eraser.report.not_erased == ()


@pytest.mark.parametrize("largest", [1e2, 1e4])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_units_of_a_column_do_not_count(rank: int, largest: float) -> None:
    """Units that are powers of two change no digit: the game on the rescaled rows takes the very same steps."""
    x, y, batches = problem(4)
    units = spread(16, largest, massive=True).log2().round().exp2()
    plain = rlace(batches, rank, steps=60)
    scaled = rlace([(x * units, y) for x, y in batches], rank, steps=60)
    within(scaled.left / units[:, None] - plain.left, 1e-9, "left")
    within(scaled.right * units - plain.right, 1e-9, "right")
    within(scaled.left @ (scaled.right @ scaled.left) - scaled.left, 1e-9 * largest, "a projection")


def test_a_massive_column_does_not_turn_the_game_below_full_rank() -> None:
    x, y, batches = problem(4)
    units = spread(16, 1e3, massive=True)
    scaled = [(x * units, y) for x, y in batches]

    def gain(batches: Batches, rows: Tensor) -> float:
        return loss(rlace(batches, 1, steps=200)(rows), y) - loss(rows, y)

    assert gain(scaled, x * units) == pytest.approx(gain(batches, x), rel=0.05)


def test_a_constant_column_is_left_alone() -> None:
    x, y, _ = problem(2)
    x[:, 3] = 7.0
    eraser = rlace([(x, y)])
    assert not bool(eraser.left[3].any()) and not bool(eraser.right[:, 3].any())
    assert torch.equal(eraser(x)[:, 3], x[:, 3])


def test_the_report_says_what_a_rank_below_the_concept_leaves() -> None:
    report = rlace(problem(4)[2], 1, steps=10).report
    assert report is not None
    assert report.not_erased == ("2 of 3 directions: rank=1 was asked for", "a game gives no guarantee")


def test_rank_one_beats_one_step_of_inlp() -> None:
    for num_classes in (2, 4):
        x, y, batches = problem(num_classes)
        game, one = rlace(batches, 1, steps=200), inlp(batches, max_iterations=1, rank=1)
        assert game.rank == one.rank == 1
        before = loss(x, y)
        assert loss(game(x), y) - before > 1.5 * (loss(one(x), y) - before)


def test_a_rank_below_the_concept_is_harder_than_the_largest_singular_vector() -> None:
    """Beside the exact optimum of squares, on classes of which one is told by a faint column of little noise."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3000) % 3
    x = torch.randn(3000, 6, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1, 1, 0.1, 1, 1])
    x[:, 0] += 1.5 * (y == 1)  # far apart, but noisy
    x[:, 3] += 0.5 * (y == 2)  # near, and plain
    batches = list(zip(x.split(250), y.split(250), strict=True))
    game = rlace(batches, 1, steps=500)
    spectral = orth(Moments(6, 3).update(x, y), rank=1)
    assert loss(game(x), y) > loss(spectral(x), y) + 0.05, "it starts there, and leaves for what is worse to classify"
    assert loss(game(x), y) > 0.995 * loss(leace(Moments(6, 3).update(x, y), rank=1)(x), y)


def dense_fantope(matrix: Tensor, rank: int) -> Tensor:
    """Return the nearest matrix of the Fantope, by all eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    clipped = values.clamp(0, 1)
    if clipped.sum() > rank:
        low, high = 0.0, float(values.max())
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if (values - middle).clamp(0, 1).sum() > rank else (low, middle)
        clipped = (values - high).clamp(0, 1)
    return vectors * clipped @ vectors.mT


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_low_rank_steps_are_those_of_the_matrix(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    low, dense = LowRank.zero(9, torch.zeros(1, dtype=torch.float64)), torch.zeros(9, 9, dtype=torch.float64)
    for _ in range(12):
        reach = torch.randn(9, 2, generator=generator, dtype=torch.float64)
        weight = torch.randn(2, 9, generator=generator, dtype=torch.float64)
        low = low.ascended(reach, weight, 0.1).onto_fantope(rank)
        pull = reach @ weight
        dense = dense_fantope(dense - 0.05 * (pull + pull.mT), rank)
        within(low.basis * low.weights @ low.basis.mT - dense, 1e-5, "projection")  # tiny weights are dropped
        assert low.weights.sum() <= rank + 1e-9
        x = torch.randn(3, 9, generator=generator, dtype=torch.float64)
        within(low.off(x) - (x - x @ dense), 1e-4, "rows")
    other = LowRank.of(torch.eye(9, dtype=torch.float64)[:, :1], torch.ones(1, 1, dtype=torch.float64))
    mixed = low.mixed(other, 0.25, 9)
    expected = 0.75 * (low.basis * low.weights @ low.basis.mT) + 0.25 * other.basis @ other.basis.mT
    within(mixed.basis * mixed.weights @ mixed.basis.mT - expected, 1e-12, "mean")


def test_labels_that_are_ignored_or_have_gaps() -> None:
    x, y, _ = problem(2)
    odd = torch.where(y == 1, 5, 2)
    odd[::3] = -100
    rows = torch.where((odd == -100)[:, None], 1e3, x)
    eraser = rlace([(rows, odd)], steps=100)
    kept = odd != -100
    assert eraser.report is not None and eraser.report.rows == int(kept.sum())
    within(eraser.mean - x[kept].mean(0), 1e-12, "mean")  # type: ignore[operator]
    assert METHODS["rlace"].needs == "passes over the rows"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 17}, "rank is 17, expected at most the width 16"),
        ({"steps": 1}, "steps is 1, expected an integer"),
        ({"classifier_rate": 0.0}, "classifier_rate is 0.0, expected a number above 0"),
        ({"projection_rate": math.nan}, "projection_rate is nan"),
        ({"rank": 9, "steps": 2}, "directions to drop, 9 were asked for"),
    ],
)
def test_refusals(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        rlace(problem(2)[2], **options)
    with pytest.raises(TypeError, match="again and again"):
        rlace(iter(problem(2)[2]))
