"""Quantiles: `median`, `swap`, `normalize_quantiles`, and the map that they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from laws import within
from torch import Tensor

from leace_fast import METHODS, QuantileNormalizer
from leace_fast.erasers._quantiles import interpolated
from leace_fast.methods import median, normalize_quantiles, swap

pytest.importorskip("datasketches")


def skewed(num_classes: int = 2, offset: float = 0.0) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """Return rows of classes that differ in the whole shape of their columns' distributions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(9000) % num_classes
    x = torch.randn(9000, 4, generator=generator, dtype=torch.float64)
    x = torch.where((y % 2 == 1)[:, None], x.exp() * 2, x) + y[:, None] + offset
    return x, y, list(zip(x.split(700), y.split(700), strict=True))


def distance(one: Tensor, two: Tensor) -> float:
    """Return the largest difference of two empirical distribution functions."""
    stats = pytest.importorskip("scipy.stats")
    return float(stats.ks_2samp(one.numpy(), two.numpy()).statistic)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_all_classes_get_the_barycentre(offset: float) -> None:
    x, y, batches = skewed(3, offset)
    out = normalize_quantiles(batches)(x, y)
    for column in range(4):
        before = distance(x[y == 0, column], x[y == 1, column])
        after = [distance(out[y == 0, column], out[y == j, column]) for j in (1, 2)]
        assert before > 0.4 and max(after) < 0.01
    at = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    expected = torch.stack([x[y == j].quantile(at, 0) for j in range(3)]).mean(0)
    within(out.quantile(at, 0) - expected, 0.1, "quantiles")
    within(out.mean(0) - x.mean(0), 0.1, "the mean is nearly kept, of deviations of up to 4")


def test_classes_count_by_their_shares() -> None:
    x, y, _ = skewed(2)
    kept = (y == 0) | (torch.arange(9000) % 10 == 1)  # 4500 rows against 900
    x, y = x[kept], y[kept]
    out = normalize_quantiles([(x, y)])(x, y)
    at = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    expected = (5 * x[y == 0].quantile(at, 0) + x[y == 1].quantile(at, 0)) / 6
    within(out.quantile(at, 0) - expected, 0.1, "quantiles")


def test_or_those_of_one_class() -> None:
    x, y, batches = skewed(3)
    out = normalize_quantiles(batches, to=1)(x, y)
    assert max(distance(out[y == j, 0], x[y == 1, 0]) for j in (0, 2)) < 0.02
    within((out - x)[y == 1], 1e-12, "rows of the class itself")
    with pytest.raises(ValueError, match="to is 3, expected a class that has rows"):
        normalize_quantiles(batches, to=3)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_swap_exchanges_the_distributions_along_a_direction(offset: float) -> None:
    x, y, batches = skewed(2, offset)
    eraser = swap(batches)
    direction = x[y == 1].mean(0) - x[y == 0].mean(0)
    direction = direction / direction.norm()
    out = eraser(x, y)
    assert distance(out[y == 0] @ direction, x[y == 1] @ direction) < 0.01
    assert distance(out[y == 1] @ direction, x[y == 0] @ direction) < 0.01
    off = torch.eye(4, dtype=torch.float64) - torch.outer(direction, direction)
    within((out - x) @ off, 1e-8 * (1 + offset), "all else stays")
    within(eraser(out, 1 - y) - x, 1e-8 * (1 + offset), "with the labels exchanged it undoes itself")
    along = torch.tensor([0.0, 2.0, 0.0, 0.0])
    moved = swap(batches, along)(x, y) - x
    assert moved[:, [0, 2, 3]].abs().max() == 0 and moved[:, 1].abs().max() > 0.1


@pytest.mark.parametrize("quantile", [0.5, 0.1])
def test_median_holds_the_coordinate(quantile: float) -> None:
    x, y, batches = skewed(2, 100.0)
    eraser = median(batches, quantile=quantile)
    direction = eraser.left[:, 0]
    held = eraser(x) @ direction
    within(held - held[0], 1e-10, "one value")
    assert abs(float((x @ direction < held[0]).double().mean()) - quantile) < 0.005
    assert eraser.report is not None and eraser.rank == 1
    assert eraser.report.change == pytest.approx(float((eraser(x) - x).square().sum(1).mean()), rel=1e-6)
    if quantile == 0.5:
        cost = (eraser(x) - x).norm(dim=1).mean()
        mean = x + (x.mean(0) @ direction - x @ direction)[:, None] * direction
        assert cost < (mean - x).norm(dim=1).mean(), "nearer in absolute value than the mean"


def test_interpolates_between_quantiles_and_moves_beyond() -> None:
    source = torch.tensor([[0.0, 1.0, 1.0, 3.0]])
    goal = torch.tensor([[10.0, 12.0, 14.0, 15.0]])
    values = torch.tensor([[-2.0, 0.0, 0.5, 1.0, 2.0, 3.0, 7.0]])
    expected = torch.tensor([[8.0, 10.0, 11.0, 13.0, 14.5, 15.0, 19.0]])
    within(interpolated(values, source, goal) - expected, 1e-6, "values")
    constant = torch.ones(1, 4)
    within(interpolated(torch.ones(1, 2), constant, goal) - 12.5, 1e-6, "a constant goes to the middle")


def test_rows_dtypes_and_files(tmp_path: Path) -> None:
    x, y, batches = skewed(2)
    eraser = normalize_quantiles(batches)
    hidden = y.clone()
    hidden[:5] = -100
    out = eraser(x, hidden)
    assert torch.equal(out[:5], x[:5]) and torch.equal(out[5:], eraser(x[5:], y[5:]))
    assert eraser(x.bfloat16().view(90, 100, 4), y.view(90, 100)).dtype == torch.bfloat16
    for one in (eraser, swap(batches)):
        one.save(tmp_path / "q.safetensors")
        loaded = QuantileNormalizer.load(tmp_path / "q.safetensors")
        assert torch.equal(loaded(x, y), one(x, y)) and repr(loaded) == repr(one) and loaded.report == one.report
        with pytest.raises(AttributeError, match="an eraser is frozen: cannot set 'method'"):
            one.method = "other"


@pytest.mark.parametrize("method", [swap, normalize_quantiles])
def test_report_is_true(method) -> None:
    x, y, batches = skewed(2)
    eraser = method(batches)
    assert eraser.report is not None and (eraser.report.method, eraser.report.rows) == (eraser.method, 9000)
    assert eraser.report.rank == (1 if method is swap else 4)
    change = float((eraser(x, y) - x).square().sum(1).mean())
    assert eraser.report.change == pytest.approx(change, rel=1e-12)
    assert METHODS["swap"].needs.startswith("passes")


def test_refusals() -> None:
    x, y, batches = skewed(3)
    eraser = normalize_quantiles(batches)
    for call, error, message in [
        (lambda: swap(batches), ValueError, "3 classes have rows, a swap needs two"),
        (lambda: median(batches), ValueError, "3 classes have rows, two give a direction"),
        (lambda: median(batches, torch.ones(3)), ValueError, r"direction has shape \(3,\), expected \(4,\)"),
        (lambda: median(batches, torch.zeros(4)), ValueError, "direction has length 0.0"),
        (lambda: median(batches, quantile=1.5), ValueError, "quantile is 1.5, expected 0 to 1"),
        (lambda: normalize_quantiles(batches, points=1), ValueError, "points is 1"),
        (lambda: normalize_quantiles(iter(batches)), TypeError, "again and again"),
        (lambda: eraser(x, y.float()), TypeError, "labels have dtype torch.float32, expected integers"),
        (lambda: eraser(x[:, :3], y), ValueError, r"expected \(..., 4\)"),
        (lambda: eraser(x, y + 1), ValueError, "a label is 3, expected 0 to 2"),
        (lambda: QuantileNormalizer(torch.ones(2, 3), torch.ones(2, 3)), ValueError, "twice, q > 1"),
        (
            lambda: QuantileNormalizer(torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(5, 2)),
            ValueError,
            "directions",
        ),
        (lambda: QuantileNormalizer(torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, 2)), ValueError, "quantiles fall"),
        (lambda: QuantileNormalizer(torch.ones(1, 1, 2) * torch.nan, torch.ones(1, 1, 2)), ValueError, "NaN or Inf"),
    ]:
        with pytest.raises(error, match=message):
            call()
