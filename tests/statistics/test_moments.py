"""`Moments` against the definitions, in float64 and by brute force; the laws are in `test_laws.py`."""

from __future__ import annotations

import cases
import pytest
import torch
from cases import PRECISIONS, STATISTICS, Precision, Statistic
from laws import Used, within
from torch import Tensor

from leace_fast import Moments
from leace_fast.statistics._block_sums import relative_error


def data_of(statistic: Statistic, dtype: torch.dtype, rows: int = 3000, dim: int = 7) -> cases.Data:
    """Return rows at an offset, with all that a statistic asks for."""
    generator = torch.Generator().manual_seed(0)
    x = cases.correlated(rows, dim, generator, condition=100.0).add(5).to(dtype)
    if target_dim := statistic.options.get("target_dim"):
        y = torch.randn(rows, target_dim, generator=generator, dtype=torch.float64) + x[:, :1].double()
    else:
        y = torch.randint(statistic.options.get("num_classes", 1), (rows,), generator=generator)
        y[::11] = -100
    mask = torch.rand(rows, generator=generator) < 0.7 if statistic.masked else None
    weight = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1 if statistic.weighted else None
    groups = torch.randint(9, (rows,), generator=generator) if statistic.grouped else None
    if not statistic.options:  # without labels, rows are left out by a mask alone
        mask = (y != -100) if mask is None else mask & (y != -100)
    return cases.Data(x, y, statistic.options, mask=mask, weight=weight, groups=groups)


@pytest.mark.parametrize("statistic", STATISTICS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_everything_is_as_defined(statistic: Statistic, precision: Precision) -> None:
    data = data_of(statistic, precision.dtype)
    moments, used = data.moments(), Used(data)
    raw = torch.ones(len(used.x), dtype=torch.float64) if data.weight is None else data.weight[used.keep]
    scale, square = used.spread, torch.outer(used.spread, used.spread)

    assert moments.count == len(used.x) and moments.skipped == 0
    assert moments.total_weight == pytest.approx(float(raw.sum()), rel=1e-13)
    assert moments.effective_count == pytest.approx(float(raw.sum() ** 2 / raw.square().sum()), rel=1e-13)
    within(moments.mean - used.mean(used.x), 1e-12 * scale, "mean")
    within(moments.covariance - used.covariance(used.x), precision.moments * square, "covariance")
    assert torch.equal(moments.covariance, moments.covariance.mT)
    within(moments.variance - used.covariance(used.x).diagonal(), precision.moments * scale.square(), "variance")
    z = used.z - used.mean(used.z)
    cross = (used.x - used.mean(used.x)).mT @ (z * used.w[:, None])
    within(moments.cross_covariance - cross, 1e-12 * torch.outer(scale, z.std(0)), "cross-covariance")
    within(moments.target_covariance - used.covariance(used.z), 1e-12, "targets")
    if not used.classes:
        return
    labels = used.z.argmax(1)
    assert torch.equal(moments.class_counts, torch.bincount(labels, minlength=data.num_classes))
    for j in range(data.num_classes):
        member = labels == j
        share, rows = raw[member] / raw[member].sum(), used.x[member]
        mean = share @ rows
        assert float(moments.class_weights[j]) == pytest.approx(float(raw[member].sum()), rel=1e-13)
        within(moments.class_means[j] - mean, 1e-12 * scale, "class mean")
        within(moments.class_mean_differences[j] - (mean - used.mean(used.x)), 1e-12 * scale, "difference")
        if statistic.options.get("per_class"):
            centred = rows - mean
            covariance = centred.mT @ (centred * share[:, None])
            within(moments.class_covariances[j] - covariance, precision.moments * square, "class covariance")


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("dim", [5, 256, 300])
def test_covariance_of_what_is_read(dim: int, per_class: bool) -> None:
    """From the lower triangle alone, block by block: what lies above it does not count."""
    generator = torch.Generator().manual_seed(0)
    x = cases.correlated(700, dim, generator, condition=100.0) + 5
    moments = Moments(dim, 2, per_class=per_class).update(x[:300], torch.arange(300) % 2)
    assert moments.mean.isfinite().all(), "read midway, so that the mean of all is not that about which sums are kept"
    moments.update(x[300:] + 1, torch.arange(400) % 2)
    readers = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    expected = readers @ moments.covariance @ readers.mT
    moments._flush().second += torch.ones(dim, dim, dtype=torch.float64).triu(1)
    within(moments.covariance_read(readers) - expected, 1e-12 * expected.diagonal().max(), "covariance")
    assert moments.covariance_read(readers[:0]).shape == (0, 0)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0, 100.0, 300.0])
def test_correlation_is_accurate_at_any_offset(precision: Precision, offset: float) -> None:
    """The correlation matrix is within 5e-5 in spectral norm up to mean / std = 300, within 2e-6 for float32 rows."""
    x = (torch.randn(9000, 40, generator=torch.Generator().manual_seed(1)) + offset).to(precision.dtype)
    y = torch.arange(9000) % 2
    moments, exact = Moments(40, 2).update(x, y).covariance, cases.Data(x, y, {"num_classes": 2})
    used = Used(exact)
    error = (moments - used.covariance(used.x)) / torch.outer(used.spread, used.spread)
    bound = {torch.float64: 1e-13, torch.float32: 2e-6}.get(precision.dtype, 5e-5)
    assert torch.linalg.matrix_norm(error, 2) <= bound


def test_covariance_beyond_the_digits_of_float32() -> None:
    """Where float32 cannot hold the mean, the rows are centred once more with their own sums."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2000, 20, generator=generator) + 2e5 + torch.rand(20, generator=generator)
    used = Used(cases.Data(x, torch.arange(2000) % 2, {"num_classes": 2}))
    moments = Moments(20, 2).update(x, torch.arange(2000) % 2)
    within((moments.covariance - used.covariance(used.x)) / torch.outer(used.spread, used.spread), 1e-5, "covariance")


def test_class_means_keep_their_digits_at_a_huge_offset() -> None:
    """Differences of class means are formed about the shift: an offset of 1e12 costs nothing but its own rounding."""
    base = torch.tensor([[0.25], [0.5], [0.75], [1.0]], dtype=torch.float64).repeat(50, 1)
    y = torch.arange(200) % 4
    moments = Moments(1, 4).update(base + 2.0**40, y)
    assert torch.equal(moments.class_mean_differences[:, 0], torch.tensor([-0.375, -0.125, 0.125, 0.375]).double())


def test_block_size_never_shows() -> None:
    """Rows fill several blocks, and blocks of wide rows are smaller."""
    for dim, rows in ((2, 10_000), (1500, 3000)):
        x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(2))
        y = torch.arange(rows) % 3
        moments = Moments(dim, 3)
        for begin in range(0, rows, 777):
            moments.update(x[begin : begin + 777], y[begin : begin + 777])
        assert moments.count == rows
        subset = slice(0, min(dim, 5))
        exact = torch.cov(x[:, subset].double().mT, correction=0)
        within(moments.covariance[subset, subset] - exact, 2e-6, "covariance")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    x, y = torch.randn(50, 3), torch.arange(50) % 2
    assert torch.equal(Moments(3, 2).update(x, y.to(dtype)).class_means, Moments(3, 2).update(x, y).class_means)


def test_mask_as_tokenizers_give_it() -> None:
    x, y = torch.randn(2, 5, 3), torch.tensor([[0, 1, 1, 0, 1], [1, 0, -100, 1, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    one = Moments(3, 2).update(x, y, mask=mask)
    used = (mask == 1) & (y != -100)
    assert one.count == 6
    assert torch.equal(one.covariance, Moments(3, 2).update(x[used], y[used]).covariance)


def test_dtypes_and_weights_may_change_on_the_way() -> None:
    x, y = torch.randn(300, 4, dtype=torch.float64), torch.arange(300) % 2
    moments = Moments(4, 2).update(x[:100], y[:100]).update(x[100:200].float(), y[100:200])
    moments.update(x[200:], y[200:], weight=torch.ones(100))
    within(moments.covariance - Moments(4, 2).update(x, y).covariance, 1e-5, "covariance")
    assert moments.relative_error == relative_error(x.float())


@pytest.mark.parametrize("factor", [2.0**-60, 0.1, 1e5])
def test_only_the_ratios_of_weights_count(factor: float) -> None:
    x, y = torch.randn(300, 4, dtype=torch.float64), torch.arange(300) % 3
    weight = torch.rand(300, dtype=torch.float64)
    one, two = (Moments(4, 3).update(x, y, weight=w) for w in (weight, weight * factor))
    within(one.covariance - two.covariance, 1e-13, "covariance")
    within(one.class_mean_differences - two.class_mean_differences, 1e-13, "class means")
    assert one.effective_count == pytest.approx(two.effective_count, rel=1e-13)


def test_integer_weights_are_repeated_rows() -> None:
    x, y, times = torch.randn(60, 3, dtype=torch.float64), torch.arange(60) % 2, torch.arange(60) % 4
    weighted = Moments(3, 2, per_class=True).update(x, y, weight=times)
    repeated = Moments(3, 2, per_class=True).update(x.repeat_interleave(times, 0), y.repeat_interleave(times))
    within(weighted.covariance - repeated.covariance, 1e-13, "covariance")
    within(weighted.class_covariances - repeated.class_covariances, 1e-13, "class covariances")
    within(weighted.class_means - repeated.class_means, 1e-13, "class means")


def test_relative_error_is_that_of_the_widest_rounding() -> None:
    x, y = torch.randn(20, 4), torch.arange(20) % 2
    assert Moments(4, 2).update(x.double(), y).relative_error == 4 * 2.0**-52
    assert Moments(4, 2).update(x, y).relative_error == relative_error(x)
    # Also when the rows still wait for a full block.
    assert Moments(4, 2).update(x.double(), y).merge(Moments(4, 2).update(x, y)).relative_error == relative_error(x)


def test_removed_shard_may_come_back() -> None:
    x, y = torch.randn(90, 3, dtype=torch.float64), torch.arange(90) % 2
    a, b = Moments(3, 2).update(x[:60], y[:60]), Moments(3, 2).update(x[60:], y[60:])
    both = a.copy().merge(b).remove(b).merge(b)
    within(both.covariance - Moments(3, 2).update(x, y).covariance, 1e-13, "covariance")
    assert both.remove(b).count == 60


@pytest.mark.parametrize("per_class", [False, True])
def test_nothing_is_left_of_a_class_that_was_removed(per_class: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight = (torch.rand(80, *more, generator=generator, dtype=torch.float64) for more in ((3,), ()))
    shards = [
        Moments(3, 3, per_class=per_class).update(x[part], torch.arange(80)[part] % 2 + first, weight=weight[part])
        for part, first in ((slice(0, 40), 0), (slice(40, 60), 1), (slice(60, 80), 1))
    ]
    rest = shards[0].copy()
    for shard in shards[1:]:
        rest.merge(shard)
    for shard in shards[1:]:
        rest.remove(shard)
    assert rest.class_counts.tolist() == [20, 20, 0] and float(rest.class_weights[2]) == 0.0
    assert rest.class_means[2].isnan().all() and not rest.cross_covariance[:, 2].any()
    assert not per_class or rest.class_covariances[2].isnan().all()


def test_copy_shares_nothing() -> None:
    x, y = torch.randn(90, 3), torch.arange(90) % 2
    moments = Moments(3, 2).update(x, y)
    twin = moments.copy().update(x + 1, y)
    assert (moments.count, twin.count) == (90, 180)
    assert not torch.equal(moments.mean, twin.mean)


def test_repr_says_what_it_holds() -> None:
    x = torch.randn(10, 3)
    x[0, 0] = torch.nan
    assert repr(Moments(3, 2).update(x, torch.zeros(10).long())) == "Moments(dim=3, num_classes=2, count=9, skipped=1)"
    assert repr(Moments(3, target_dim=2)) == "Moments(dim=3, target_dim=2, count=0)"


def test_memory_is_not_needed_twice_for_the_rows() -> None:
    """What waits for a full block is one block at most, however many rows came."""
    moments = Moments(4, 2)
    for _ in range(3):
        moments.update(torch.randn(5000, 4), torch.zeros(5000).long())
    staged = moments._sums.staged
    held = [part for part in vars(staged).values() if isinstance(part, Tensor)] if staged else []
    assert sum(len(part) for part in held) <= 2 * 4096
