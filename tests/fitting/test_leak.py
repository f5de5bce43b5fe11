"""What reports expect of fresh rows and groups, against simulated populations."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from leace_fast import Eraser, Moments, Report, leace, methods

DIM, CLASSES = 32, 4


@pytest.fixture(autouse=True)
def quiet() -> None:
    warnings.filterwarnings("ignore", message=".*(rows are few|groups, by their shares).*")


def nats(means: Tensor, shares: Tensor, covariance: Tensor) -> float:
    """Return the second-order information (nats) of classes with such means about a common covariance."""
    apart = means - shares @ means
    return 0.5 * float((shares * (apart * torch.linalg.solve(covariance, apart.mT).mT).sum(1)).sum())


def mixing() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(DIM, DIM, generator=generator, dtype=torch.float64) / 4 + torch.eye(DIM, dtype=torch.float64)


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.85, 0.05, 0.05, 0.05]])
def test_the_noise_of_counts_is_what_is_left_on_fresh_rows(shares: list[float]) -> None:
    weights = torch.tensor(shares, dtype=torch.float64)
    means, root = 3 * torch.eye(CLASSES, DIM, dtype=torch.float64), mixing()
    centred = means - weights @ means
    covariance = root.mT @ root + centred.mT @ (centred * weights[:, None])
    seen, told = [], []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        y = torch.multinomial(weights, 3000, replacement=True, generator=generator)
        x = torch.randn(3000, DIM, generator=generator, dtype=torch.float64) @ root + means[y]
        eraser = leace(Moments(DIM, CLASSES).update(x, y))
        seen.append(nats(eraser(means), weights, covariance))
        assert eraser.report is not None
        told.append(eraser.report.expected_leak)
    assert sum(seen) / 30 == pytest.approx(sum(told) / 30, rel=0.1)


def population(groups: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, classes and groups of very different sizes, whose class means differ from group to group."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(groups, CLASSES, DIM, generator=generator, dtype=torch.float64) * 0.3
    common = torch.randn(groups, 1, DIM, generator=generator, dtype=torch.float64) * 0.5
    group = torch.repeat_interleave(torch.arange(groups), torch.randint(10, 200, (groups,), generator=generator))
    y = torch.randint(CLASSES, (len(group),), generator=generator)
    means = (own + common)[group, y] + 2 * torch.eye(CLASSES, DIM, dtype=torch.float64)[y]
    return torch.randn(len(group), DIM, generator=generator, dtype=torch.float64) + means, y, group


def left_on(eraser: Eraser, x: Tensor, y: Tensor) -> float:
    """Return the nats that the class means of rows leave after erasure, in the metric of the rows."""
    before, after = (Moments(DIM, CLASSES).update(rows, y) for rows in (x, eraser(x)))
    return nats(after.class_means, after.target_mean, before.covariance)


def test_the_jackknife_is_what_is_left_on_fresh_groups() -> None:
    seen, told, counts = [], [], []
    for seed in range(12):
        x, y, group = population(50, seed)
        eraser = leace(Moments(DIM, CLASSES).update(x, y, groups=group))
        fresh_x, fresh_y, _ = population(2000, 100 + seed)
        seen.append(left_on(eraser, fresh_x, fresh_y))
        assert eraser.report is not None and eraser.report.expected_group_leak is not None
        told.append(eraser.report.expected_group_leak)
        counts.append(eraser.report.expected_leak)
    assert sum(seen) / 12 == pytest.approx(sum(told) / 12, rel=0.2)
    assert sum(counts) < 0.7 * sum(told), "the noise of counts alone tells too little"


@pytest.mark.parametrize("size", [0.2, 1.0, 5.0])
def test_a_metric_of_other_rows_changes_no_unit_of_what_is_expected(size: float) -> None:
    """Nats are of the concept's rows, however large or skew those are on which least change is measured."""
    x, y, group = population(50, 0)
    moments = Moments(DIM, CLASSES).update(x, y, groups=group)
    generator = torch.Generator().manual_seed(1)
    other = torch.randn(4000, DIM, generator=generator, dtype=torch.float64) @ (mixing() * size)
    eraser = leace(moments, metric=Moments(DIM).update(other))
    plain = leace(moments).report
    assert eraser.report is not None and plain is not None and plain.expected_group_leak is not None
    # A linear reader sees the same: what the metric decides is where the erased part goes.
    assert eraser.report.expected_group_leak == pytest.approx(plain.expected_group_leak, rel=1e-6)


@pytest.mark.parametrize("size", [8, 100])
def test_groups_that_give_no_contrasts_warn(size: int) -> None:
    """Of few rows of each class, or of one class each."""
    generator = torch.Generator().manual_seed(0)
    x, group = torch.randn(400, DIM, generator=generator), torch.arange(400) // size
    y = torch.arange(400) % 2 if size == 8 else group % 2
    with pytest.warns(UserWarning, match="there are no contrasts: they come from groups that hold several classes"):
        eraser = leace(Moments(DIM, 2).update(x, y, groups=group), contrasts=5)
    assert eraser.report is not None and eraser.report.contrasts == 0


def test_contrasts_leave_less_on_fresh_groups_and_the_front_shows_it() -> None:
    """Classes differ from group to group along three directions alone: three contrasts take that away."""
    generator = torch.Generator().manual_seed(0)
    along = torch.linalg.qr(torch.randn(DIM, 3, generator=generator, dtype=torch.float64))[0]

    def rows(groups: int, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        group = torch.arange(groups).repeat_interleave(size)
        y = torch.randint(CLASSES, (len(group),), generator=draw)
        own = torch.randn(groups, CLASSES, 3, generator=draw, dtype=torch.float64) @ along.mT
        x = torch.randn(len(group), DIM, generator=draw, dtype=torch.float64) + own[group, y]
        return x + 2 * torch.eye(CLASSES, DIM, dtype=torch.float64)[y], y, group

    x, y, group = rows(40, 1000, 1)
    moments = Moments(DIM, CLASSES).update(x, y, groups=group)
    fresh_x, fresh_y, _ = rows(400, 100, 2)
    left = {number: left_on(leace(moments, contrasts=number), fresh_x, fresh_y) for number in (0, 3)}
    assert left[3] < 0.25 * left[0]
    report = leace(moments, contrasts="auto").report
    assert report is not None and 1 <= report.contrasts <= 3 and report.rank == CLASSES - 1 + report.contrasts
    numbers, leaks, changes = zip(*report.front, strict=True)
    assert numbers == tuple(range(21)) and list(changes) == sorted(changes)
    assert leaks[3] < 0.4 * leaks[0] and leaks[0] - leaks[3] > 5 * (leaks[3] - leaks[6])
    assert report.expected_group_leak == leaks[report.contrasts]


@pytest.mark.parametrize("contrasts", [1, 5, 500, "auto"])
def test_with_contrasts_the_means_are_equal_and_the_map_is_a_projection(contrasts: int | str) -> None:
    """Also where more are asked for than there are."""
    x, y, group = population(30, 0)
    eraser = leace(Moments(DIM, CLASSES).update(x, y, groups=group), contrasts=contrasts)  # type: ignore[arg-type]
    assert Moments(DIM, CLASSES).update(eraser(x), y).class_mean_differences.abs().max() < 1e-12
    assert (eraser.right @ eraser.left - torch.eye(eraser.rank)).abs().max() < 1e-10
    assert eraser.rank == {1: 4, 5: 8, 500: DIM}.get(contrasts, eraser.rank)  # type: ignore[call-overload]


def test_contrasts_beyond_those_that_the_groups_show_are_not_made_up() -> None:
    """Three groups with two classes: their cells differ in three directions at most."""
    generator = torch.Generator().manual_seed(0)
    group, y = torch.arange(300) // 100, torch.arange(300) % 2
    x = torch.randn(300, DIM, generator=generator, dtype=torch.float64)
    eraser = leace(Moments(DIM, 2).update(x, y, groups=group), contrasts=10)
    assert eraser.report is not None and eraser.report.contrasts == 2
    assert (eraser.right @ eraser.left - torch.eye(eraser.rank)).abs().max() < 1e-10


def test_what_cannot_be_had_is_refused() -> None:
    x, y, group = population(30, 0)
    grouped, plain = Moments(DIM, CLASSES).update(x, y, groups=group), Moments(DIM, CLASSES).update(x, y)
    with pytest.raises(ValueError, match="contrasts need groups"):
        leace(plain, contrasts=2)
    for wrong in (-1, 1.5, True, "all"):
        with pytest.raises(ValueError, match="expected an integer >= 0, or 'auto'"):
            leace(grouped, contrasts=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got rank=1 and contrasts=2, expected one"):
        leace(grouped, rank=1, contrasts=2)
    one = Moments(DIM, CLASSES).update(x, y, groups=torch.zeros_like(group))
    with pytest.raises(ValueError, match="the rows come from 1 group, expected at least two"):
        leace(one, contrasts="auto")


def test_a_class_of_one_group_alone_has_no_expectation() -> None:
    x, y, group = population(30, 0)
    report = leace(Moments(DIM, CLASSES).update(x, y, groups=torch.where(y == 2, 99, group))).report
    assert report is not None and report.expected_group_leak == float("inf")
    assert Report.from_dict(report.to_dict()) == report


def test_few_rows_warn_with_the_number_that_would_do() -> None:
    x, y, _ = population(30, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leace(Moments(DIM, CLASSES).update(x[:400], y[:400]))
    (message,) = (str(one.message) for one in caught)
    assert message.startswith(
        "400 rows are few for 32 columns: on fresh rows a linear classifier is expected to gain 0.11"
    )
    assert message.endswith("about 4,350 rows would bring it to 0.01")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leace(Moments(DIM, CLASSES).update(x.repeat(2, 1), y.repeat(2)))


def test_few_groups_warn() -> None:
    x, y, group = population(30, 0)
    with pytest.warns(UserWarning, match="the rows come from 4 groups, by their shares as good as 4.0"):
        leace(Moments(DIM, CLASSES).update(x, y, groups=torch.arange(len(x)) % 4))


@pytest.mark.parametrize("method", ["orth", "mean_projection", "inlp", "ace", "splince"])
def test_other_methods_tell_of_fresh_rows_too(method: str) -> None:
    x, y, group = population(30, 0)
    moments = Moments(DIM, CLASSES).update(x, y, groups=group)
    options = [Moments(DIM, target_dim=1).update(x, x[:, -1:])] if method == "splince" else []
    report = getattr(methods, method)(moments, *options).report
    assert report.expected_leak == pytest.approx(3 * (DIM - report.rank) / (2 * len(x)))
    assert report.groups == 30 or method == "splince"


def test_real_valued_targets_count_as_so_many_classes_more() -> None:
    x, y, _ = population(30, 0)
    targets = torch.cat([x[:, :2], x[:, :1] + x[:, 1:2]], 1)  # one of the three is the sum of the others
    report = leace(Moments(DIM, target_dim=3).update(x, targets)).report
    assert report is not None and report.expected_leak == pytest.approx(2 * (DIM - 2) / (2 * len(x)))


def test_auto_takes_no_contrasts_where_groups_do_not_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    y, group = torch.arange(6000) % 2, torch.randint(200, (6000,), generator=generator)
    x = torch.randn(6000, DIM, generator=generator) + 2 * torch.eye(2, DIM)[y]
    report = leace(Moments(DIM, 2).update(x, y, groups=group), contrasts="auto").report
    assert report is not None and report.contrasts == 0 and report.rank == 1


def test_where_there_are_no_contrasts_as_much_is_expected_as_without() -> None:
    """Each group has one class: within none of them do classes differ."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(40).repeat_interleave(100)
    y = group % 2
    x = torch.randn(4000, DIM, generator=generator) + torch.randn(40, DIM, generator=generator)[group]
    moments = Moments(DIM, 2).update(x, y, groups=group)
    with pytest.warns(UserWarning, match="there are no contrasts"):
        found = leace(moments, contrasts=5).report
    wanted = leace(moments).report
    assert found is not None and wanted is not None
    assert found.expected_group_leak == wanted.expected_group_leak and found.contrasts == 0


def test_at_full_rank_nothing_is_expected() -> None:
    x, y, group = population(30, 0)
    report = leace(Moments(DIM, CLASSES).update(x, y, groups=group), contrasts=500).report
    assert report is not None and report.rank == DIM
    assert report.expected_leak == 0 and report.expected_group_leak is not None
    assert 0 <= report.expected_group_leak < 1e-12
