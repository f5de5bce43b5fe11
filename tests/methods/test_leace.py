"""LEACE: how little is left in each dtype, the paper's own form, the peer's probes, the report and the options."""

from __future__ import annotations

import math
import re
from typing import Any

import cases
import pytest
import torch
from cases import HARD, PRECISIONS, Data, Precision
from laws import ZERO, Used, within
from torch import Tensor

from leace_fast import METHODS, Eraser, Moments, leace
from leace_fast.statistics._block_sums import relative_error

quiet = pytest.mark.filterwarnings("ignore:not erased")


def left_over(eraser: Eraser, data: Data) -> tuple[float, float]:
    """Return the largest gap of class means over max(std, |mean|) after erasure, and that of a perfect result rounded.

    Rows are those of the data, in their own dtype.
    """
    used = Used(data)
    rows = data.x[used.keep]
    perfect = eraser(rows.double()).to(rows.dtype)
    gaps = [(used.gaps(out.double()) / used.scale[:, None]).abs().max() for out in (eraser(rows), perfect)]
    return float(gaps[0]), float(gaps[1])


@quiet
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "1e-5" in n else n for n in HARD])
def test_little_is_left_in_every_dtype(name: str, precision: Precision) -> None:
    data = HARD[name]().to(precision.dtype)
    gap, rounded = left_over(leace(data.moments()), data)
    assert gap - rounded <= precision.gap, f"{gap:.1e} is left, {rounded:.1e} of it from the rounding of the output"


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_a_class_of_one_in_a_hundred_thousand(precision: Precision) -> None:
    data = HARD["class share 1e-5"]().to(precision.dtype)
    eraser = leace(data.moments())
    gap, rounded = left_over(eraser, data)
    assert eraser.rank == 1 and gap - rounded <= precision.gap
    exact = Used(data)
    assert (exact.gaps(eraser(exact.x)) / exact.scale[:, None]).abs().max() <= 1e-12


@pytest.mark.parametrize(
    ("num_classes", "dim", "rows"), [(200, 256, 4000), pytest.param(1000, 1100, 15_000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("condition", [1e2, 1e8])
def test_many_classes(num_classes: int, dim: int, rows: int, condition: float) -> None:
    """Each of many balanced classes is a small part of the variance, and none is skipped."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % num_classes
    means = 0.3 * torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    data = Data(cases.correlated(rows, dim, generator, condition) + means[y], y, {"num_classes": num_classes})
    eraser = leace(data.moments(), shrinkage=False)
    assert eraser.rank == num_classes - 1
    assert left_over(eraser, data)[0] <= 1e-12
    assert (eraser.right @ eraser.left - torch.eye(eraser.rank)).abs().max() <= 1e-11
    single = data.to(torch.float32)
    gap, rounded = left_over(leace(single.moments()), single)
    assert gap - rounded <= 1e-5


@pytest.mark.parametrize("share", [1e-1, 1e-3])
@pytest.mark.parametrize("distance", [6.0, 10.0])
def test_a_rare_class_is_erased_whole(share: float, distance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    y = (torch.arange(20_000) % round(1 / share) == 0).long()
    x = cases.correlated(20_000, 10, generator) + distance * y[:, None] * torch.linspace(-1, 1, 10)
    eraser = leace(Moments(10, 2).update(x, y))
    means = Moments(10, 2).update(eraser(x), y).class_mean_differences
    assert eraser.rank == 1 and means.abs().max() < 1e-12


def test_means_that_nearly_coincide() -> None:
    """Two classes 1e-9 apart stand above rounding and are erased; what does not is named."""
    generator = torch.Generator().manual_seed(2)
    half = cases.correlated(500, 6, generator, condition=10.0)
    x, y = torch.cat([half, half + 1e-9]), torch.arange(1000) // 500
    eraser = leace(Moments(6, 2).update(x, y))
    assert eraser.rank == 1
    left = Moments(6, 2).update(eraser(x), y).class_mean_differences
    assert left.abs().max() <= 1e-14
    with pytest.warns(UserWarning, match="not erased: class 1 against class 0: less apart than rounding"):
        # The same rows in another order: their means differ by rounding alone.
        hidden = leace(Moments(6, 2).update(torch.cat([half, half.flip(0)]), y))
    assert hidden.rank == 0 and len(hidden.report.not_erased) == 1  # type: ignore[union-attr]
    assert torch.equal(hidden(x), x), "nothing to erase leaves rows as they are"


def test_a_small_gap_beside_large_ones() -> None:
    """Three classes far apart on a line leave one direction; a fourth, 1e-8 off the line, has its own."""
    generator = torch.Generator().manual_seed(2)
    noise, y = cases.correlated(500, 6, generator, condition=10.0), torch.arange(2000) // 500
    means = torch.zeros(4, 6, dtype=torch.float64)
    means[1, 0], means[2, 0], means[3, 1] = 5, 10, 1e-8
    x = noise.repeat(4, 1) + means[y] + 1
    eraser = leace(Moments(6, 4).update(x, y))
    assert eraser.rank == 2
    within(Moments(6, 4).update(eraser(x), y).class_mean_differences, 1e-14, "gap")


@pytest.mark.parametrize("condition", [1e2, 1e6])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_is_the_eraser_of_the_paper(num_classes: int, condition: float) -> None:
    """P = I - W^+ U U' W with W the inverse square root of the covariance (theorem 4.3), to rounding."""
    data = cases.classes(1000, 12, num_classes, condition=condition)
    moments = data.moments()
    values, vectors = torch.linalg.eigh(moments.covariance)
    whitening = vectors * values.rsqrt() @ vectors.mT
    columns = whitening @ moments.class_mean_differences.mT
    basis = torch.linalg.svd(columns)[0][:, : num_classes - 1]
    paper = vectors * values.sqrt() @ vectors.mT @ basis @ basis.mT @ whitening
    eraser = leace(moments, shrinkage=False)
    ours = eraser.left @ eraser.right
    assert (ours - paper).norm() <= 1e-12 * condition**0.5 * paper.norm()
    assert torch.equal(eraser.mean, moments.mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_classes", [2, 3, 5, 10, 20])
@pytest.mark.parametrize("options", [{}, {"shrinkage": True}, {"affine": False, "max_cost_ratio": math.inf}], ids=str)
def test_fitted_probes_find_nothing(num_classes: int, options: dict[str, Any]) -> None:
    """Logistic regression and a linear support vector machine keep every coefficient below 4e-9."""
    sklearn = pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    assert sklearn
    features, labels = make_classification(2048, 128, n_classes=num_classes, n_informative=num_classes, random_state=42)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    out = leace(Moments(128, num_classes).update(x, y), **options)(x)

    def coefficients(rows: Tensor) -> list[float]:
        centred = (rows - rows.mean(0)).numpy()
        logistic = LogisticRegression(C=math.inf, tol=0.0, max_iter=100).fit(centred, labels)
        machine = LinearSVC(dual=False, intercept_scaling=10**6, tol=2e-9).fit(centred, labels)  # pyright: ignore[reportArgumentType]
        return [float(abs(probe.coef_).max()) for probe in (logistic, machine)]

    assert max(coefficients(out)) < ZERO
    if num_classes < 5:
        assert min(coefficients(x)) > 0.05, "before erasure the same probes do find it"


def test_rank_keeps_the_strongest_directions() -> None:
    """Of three classes, the direction that tells most is erased first."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(3000) % 3
    x = torch.randn(3000, 5, generator=generator, dtype=torch.float64)
    x[:, 1] += 4.0 * (y == 1)
    x[:, 3] += 0.5 * (y == 2)
    moments = Moments(5, 3).update(x, y)
    eraser = leace(moments, rank=1)
    means = Moments(5, 3).update(eraser(x), y).class_mean_differences
    before = moments.class_mean_differences
    assert means[:, 1].abs().max() < 0.1 * before[:, 1].abs().max()
    assert means[:, 3].abs().max() > 0.5 * before[:, 3].abs().max()
    assert eraser.report is not None and eraser.report.not_erased == ("1 of 2 directions: rank=1 was asked for",)
    assert leace(moments, rank=2).rank == leace(moments, rank=9).rank == 2


def test_strongest_is_by_correlation_not_by_length() -> None:
    """A gap of fifty in a column of deviation a hundred tells less than one of four in a column of deviation one."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(3000) % 3
    x = torch.randn(3000, 5, generator=generator, dtype=torch.float64)
    x[:, 1] = 100 * x[:, 1] + 50.0 * (y == 1)
    x[:, 3] += 4.0 * (y == 2)
    moments = Moments(5, 3).update(x, y)
    before = moments.class_mean_differences
    after = Moments(5, 3).update(leace(moments, rank=1)(x), y).class_mean_differences
    assert after[:, 3].abs().max() < 0.1 * before[:, 3].abs().max()
    assert after[:, 1].abs().max() > 0.5 * before[:, 1].abs().max()
    z = torch.nn.functional.one_hot(y, 3)[:, 1:].double() * torch.tensor([1000.0, 1.0])
    targets = leace(Moments(5, target_dim=2).update(x, z), rank=1)
    within(targets(x) - leace(moments, rank=1)(x), 1e-9 * x.abs().max(), "numbers for labels, at any scale")


@pytest.mark.parametrize("kind", ["classes", "targets"])
def test_strongest_is_the_first_canonical_direction(kind: str) -> None:
    """The leading singular vector of Sxx^-1/2 Sxz Szz^-1/2, of classes of unlike sizes and of targets alike."""
    data = cases.classes(900, 8, 4) if kind == "classes" else cases.targets(900, 8, 3)
    x = data.x + torch.randn(data.x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = data.moments(x)
    values, vectors = torch.linalg.eigh(moments.covariance)
    whiten, unwhiten = (vectors * values**power @ vectors.mT for power in (-0.5, 0.5))
    kept = slice(1, None) if kind == "classes" else slice(None)  # one-hot columns sum to one
    spread, axes = torch.linalg.eigh(moments.target_covariance[kept, kept])
    columns = whiten @ moments.cross_covariance[:, kept] @ (axes * spread.rsqrt()) @ axes.mT
    basis, correlation, _ = torch.linalg.svd(columns, full_matrices=False)
    assert correlation[0] > 1.01 * correlation[1]
    eraser = leace(moments, rank=1, shrinkage=False)
    expected = unwhiten @ basis[:, :1] @ basis[:, :1].mT @ whiten
    within(eraser.left @ eraser.right - expected, 1e-7, "projection")


def test_report_is_true() -> None:
    data = cases.classes(2000, 8, 3)
    x, moments = data.x, data.moments()
    for affine in (True, False):
        eraser = leace(moments, affine=affine, max_cost_ratio=math.inf, shrinkage=False)
        report = eraser.report
        assert report is not None
        assert (report.method, report.dim, report.rank, report.rows) == ("leace", 8, 2, 2000)
        assert report.change == pytest.approx(float((eraser(x) - x).square().sum(1).mean()), rel=1e-9)
        correlation = moments.covariance / torch.outer(moments.variance.sqrt(), moments.variance.sqrt())
        smallest = float(torch.linalg.eigvalsh(correlation)[0])
        assert report.smallest_eigenvalue == pytest.approx(smallest, rel=0.05)
        assert report.smallest_eigenvalue >= smallest * (1 - 1e-9)
        assert report.error_bound == pytest.approx(8 * 2.0**-52 / report.smallest_eigenvalue)
        assert (report.ridge, report.shrinkage, report.not_erased) == (4 * 8 * 2.0**-52, 0.0, ())
    assert leace(moments).report.cost_ratio == 1.0  # type: ignore[union-attr]
    affine, linear = (leace(moments, affine=kind, max_cost_ratio=math.inf).report for kind in (True, False))
    assert affine is not None and linear is not None
    assert linear.cost_ratio == pytest.approx(linear.change / affine.change) and linear.cost_ratio > 1
    assert "mean squared change" in str(linear) and "of affine" in str(linear)


def test_error_bound_holds_for_float32_rows() -> None:
    """The change is at most so far from the least, relative, as the report says."""
    data = cases.classes(3000, 24, 3, condition=1e4)
    single = leace(data.to(torch.float32).moments(), shrinkage=False)
    exact = leace(data.moments(), shrinkage=False)
    assert exact.report is not None and single.report is not None
    cost = float((single(data.x) - data.x).square().sum(1).mean())
    assert exact.report.change * (1 - 1e-5) <= cost <= exact.report.change * (1 + single.report.error_bound)
    assert single.report.ridge == relative_error(data.x.float())


def test_shrinkage_is_off_where_rows_suffice() -> None:
    def used(rows: int, **options: Any) -> float:
        report = leace(cases.classes(rows, 16, 2).moments(), **options).report
        assert report is not None
        return report.shrinkage

    assert used(64) == 0.0 and 0.0 < used(63) <= 1.0
    assert used(63, shrinkage=False) == 0.0 and used(64, shrinkage=True) > 0.0
    assert used(64, shrinkage=0.25) == 0.25 and used(64, shrinkage=1) == 1.0 and used(64, shrinkage=0) == 0.0
    many = [used(rows, shrinkage=True) for rows in (50, 500, 5000)]
    assert many == sorted(many, reverse=True) and many[-1] < 0.01


def test_shrinkage_is_that_of_its_source() -> None:
    """Weight d^2 / n / sum of squared correlations, of Bodnar et al. 2014 with the identity as the target."""
    data = cases.classes(50, 16, 2)
    moments = data.moments()
    correlation = torch.corrcoef(data.x.mT)
    weight = min(1.0, 16 * 16 / 50 / float((correlation - torch.eye(16)).square().sum()))
    report = leace(moments, shrinkage=True).report
    assert report is not None and report.shrinkage == pytest.approx(weight, rel=1e-9)


def test_linear_map_is_refused_where_it_costs() -> None:
    moments = HARD["mean in the span"]().moments()
    with pytest.raises(ValueError, match=r"times as much as the affine one, at most 1\.1 is allowed: use affine=True"):
        leace(moments, affine=False)
    dear = leace(moments, affine=False, max_cost_ratio=math.inf)
    assert dear.report is not None and dear.report.cost_ratio > 1.1
    limit = dear.report.cost_ratio
    assert leace(moments, affine=False, max_cost_ratio=limit * 1.001).rank == 1
    with pytest.raises(ValueError, match="without an offset"):
        leace(moments, affine=False, max_cost_ratio=limit * 0.999)
    centred = cases.classes(2000, 8, 2)
    moments = Moments(8, 2).update(centred.x - centred.x.mean(0), centred.y)
    assert leace(moments, affine=False).report.cost_ratio == pytest.approx(1.0)  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [1e-30, 1e-3, 1e15, 1e30])
def test_a_constant_column_hides_nothing(value: float) -> None:
    """A constant column brings no rounding error, however large it is, and no map reads it."""
    data = cases.classes(500, 6, 3)
    data.x[:, 2] = value
    for affine in (True, False):
        eraser = leace(data.moments(), affine=affine, max_cost_ratio=math.inf)
        assert eraser.rank == 2 and eraser.report is not None and not eraser.report.not_erased
        assert torch.equal(eraser(data.x)[:, 2], data.x[:, 2])
        moved = data.x.clone()
        moved[:, 2] += 1 + abs(value)
        others = [0, 1, 3, 4, 5]
        within((eraser(moved) - eraser(data.x))[:, others], 1e-12, "what another value of the column changes")


@quiet
def test_a_class_without_rows_is_named() -> None:
    data = cases.classes(300, 6, 2)
    with pytest.warns(UserWarning, match="not erased: class 2: it has no rows; class 3: it has no rows"):
        eraser = leace(Moments(6, 4).update(data.x, data.y))
    assert eraser.report is not None and eraser.rank == 1
    assert eraser.report.not_erased == ("class 2: it has no rows", "class 3: it has no rows")
    constant = torch.stack([torch.randn(300), torch.ones(300)], 1)
    with pytest.warns(UserWarning, match="target 1: it is constant"):
        assert leace(Moments(6, target_dim=2).update(data.x, constant)).rank == 1


def test_by_class_moments_give_the_same_eraser() -> None:
    data = cases.classes(300, 6, 3)
    one = leace(data.moments())
    two = leace(Moments(6, 3, per_class=True).update(data.x, data.y))
    within(one.left @ one.right - two.left @ two.right, 1e-11, "eraser")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0, expected a positive integer or None"),
        ({"rank": 1.5}, "rank is 1.5, expected a positive integer"),
        ({"rank": True}, "rank is True, expected a positive integer"),
        ({"shrinkage": 1.5}, "shrinkage is 1.5, expected 'auto', True, False or a weight from 0 to 1"),
        ({"shrinkage": "ledoit"}, "shrinkage is 'ledoit', expected 'auto'"),
        ({"shrinkage": math.nan}, "shrinkage is nan"),
        ({"ridge": -1.0}, "ridge is -1.0, expected a finite number >= 0"),
        ({"ridge": math.nan}, "ridge is nan, expected a finite number >= 0"),
        ({"ridge": math.inf}, "ridge is inf, expected a finite number >= 0"),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        leace(cases.classes(300, 6, 3).moments(), **options)


def test_is_in_the_table_of_methods() -> None:
    assert METHODS["leace"].fit is leace


def test_a_ridge_keeps_the_rounding_of_a_float32_norm_from_being_read() -> None:
    """In float64, rows of a layer norm that computes in float32 leave their hyperplane by its rounding alone."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (300,), generator=generator)
    shift = 0.5 * y[:, None] * torch.randn(16, generator=generator) + 10 * torch.randn(16, generator=generator)
    x = torch.nn.functional.layer_norm(torch.randn(300, 16, generator=generator) + shift, [16]).double()
    again = x * (1 + 2.0**-24 * torch.randn(x.shape, generator=generator, dtype=torch.float64))  # rounded otherwise
    moments = Moments(16, 2).update(x, y)
    default, steady = leace(moments), leace(moments, ridge=2e-6)

    def moved(eraser: Eraser) -> float:
        return float((eraser(again) - eraser(x) - (again - x)).norm() / (eraser(x) - x).norm())

    assert moved(default) > 100 * moved(steady) and moved(steady) < 1e-5
    within((steady(x)[y == 0].mean(0) - steady(x)[y == 1].mean(0)), 1e-14, "class means")
    assert float((steady(x) - x).square().sum()) < 1.01 * float((default(x) - x).square().sum())


@pytest.mark.parametrize("scale", [1e-8, 1e-14])
def test_a_metric_that_hides_a_direction_of_the_means_says_so(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(900, 6, generator=generator, dtype=torch.float64), torch.arange(900) % 3
    x[:, 0] += y
    other = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    other[:, 0] = other[:, 1] * scale
    with pytest.warns(UserWarning, match="class means differ by .* the metric's rows hardly vary"):
        eraser = leace(Moments(6, 3).update(x, y), metric=Moments(6).update(other))
    assert eraser.report is not None and len(eraser.report.not_erased) == 1
