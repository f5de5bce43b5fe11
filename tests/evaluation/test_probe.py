"""Linear probes against cases whose answer is known."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from leace_fast.evaluation import Probe, _logistic, linear_probe
from leace_fast.evaluation._logistic import fit_mixture
from leace_fast.evaluation._probe import best_constant


def gaussians(rows: int, gap: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (rows,), generator=generator)
    x = torch.randn(rows, 16, generator=generator)
    x[:, :3] += gap * torch.nn.functional.one_hot(y, 3)
    return x, y


def test_reads_what_is_there():
    probe = linear_probe(*gaussians(2000, 8.0, 0), *gaussians(1000, 8.0, 1))
    assert probe.accuracy > 0.99
    assert (probe.train_rows, probe.test_rows) == (2000, 1000)


def test_reads_nothing_where_there_is_nothing():
    probe = linear_probe(*gaussians(20000, 0.0, 0), *gaussians(4000, 0.0, 1))
    assert abs(probe.accuracy - 1 / 3) < 0.03


def test_a_small_gap_in_a_small_feature_is_read():
    x, y = gaussians(4000, 8.0, 0)
    x = x * 1e-4 + 5
    assert linear_probe(x[:3000], y[:3000], x[3000:], y[3000:]).accuracy > 0.98


def test_best_constant_is_chosen_on_the_training_rows():
    train, test = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
    assert best_constant(train, test) == 0.25
    probe = linear_probe(torch.zeros(5, 2), train, torch.zeros(4, 2), test)
    assert (probe.accuracy, probe.constant, probe.train_rows, probe.test_rows) == (0.25, 0.25, 5, 4)


def test_one_class_in_training_gives_the_constant():
    x, y = torch.randn(10, 4), torch.ones(10, dtype=torch.int64)
    probe = linear_probe(x, y, x, torch.tensor([0, 1] * 5))
    assert (probe.accuracy, probe.constant, probe.train_rows, probe.test_rows) == (0.5, 0.5, 10, 10)
    assert probe.nats == 0 and not probe.leaks


def test_ignored_rows_and_leading_dimensions():
    x, y = gaussians(600, 8.0, 0)
    y = y.reshape(20, 30).clone()
    y[:10] = -100
    probe = linear_probe(x.reshape(20, 30, 16).bfloat16(), y, x.reshape(20, 30, 16), y)
    assert probe.train_rows == probe.test_rows == 300
    assert probe.accuracy > 0.95


@pytest.mark.parametrize(
    ("x", "y", "test_x", "message"),
    [
        (torch.ones(4, 3), torch.zeros(5, dtype=torch.int64), torch.ones(4, 3), r"shape \(4, 3\) and y \(5,\)"),
        (torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(4, 2), "width 2, expected 3"),
        (torch.ones(4, 3), torch.full((4,), -100), torch.ones(4, 3), "0 training"),
        (torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.int64), torch.ones(4, 3), "NaN"),
    ],
)
def test_bad_input(x, y, test_x, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(x, y, test_x, torch.zeros(len(test_x), dtype=torch.int64))


def test_nats_are_those_of_the_truth_and_the_interval_holds_them():
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(2, (60_000,), generator=generator)
    x = torch.randn(60_000, 8, generator=generator)
    x[:, 0] += 1.5 * (y - 0.5)
    probe = linear_probe(x[:30_000], y[:30_000], x[30_000:], y[30_000:])
    truth = torch.nn.functional.logsigmoid(1.5 * x[:, 0] * (2 * y - 1)).mean().item() + math.log(2)
    assert probe.nats == pytest.approx(truth, abs=0.01) and probe.leaks
    assert probe.nats_interval[0] < truth < probe.nats_interval[1]
    assert probe.accuracy_interval[0] < probe.accuracy < probe.accuracy_interval[1]


def correlated(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose correlation matrix has a condition of about 1e5, and a class in the direction of least variance."""
    fixed = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=fixed))[0]
    deviations = torch.logspace(0, -2.5, 64)
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (rows,), generator=generator)
    z = torch.randn(rows, 64, generator=generator)
    z[:, -1] += 0.8 * (y - 0.5)
    return z * deviations @ basis.mT, y


def test_correlated_columns_hide_nothing_and_the_fit_has_converged(monkeypatch):
    train, test = correlated(10_000, 1), correlated(10_000, 2)
    probe = linear_probe(*train, *test)
    # log(2) - E[log(1 + exp(-2 z))] of a gap of .8: .077 nats
    assert probe.nats == pytest.approx(0.077, abs=0.012) and probe.leaks
    monkeypatch.setattr(_logistic, "TOLERANCE", 1e-7)
    monkeypatch.setattr(_logistic, "MAX_STEPS", 5000)
    assert linear_probe(*train, *test).nats == pytest.approx(probe.nats, abs=2e-5)


@pytest.mark.parametrize("gap", [0.0, 0.3, 1.5])
def test_the_optimum_is_that_of_a_plain_fit(gap):
    from sklearn.linear_model import LogisticRegression

    x, y = gaussians(3000, gap, 0)
    test_x, test_y = gaussians(3000, gap, 1)
    probe = fit_mixture(x, y, torch.arange(3000), 3)
    plain = LogisticRegression(C=1e3, max_iter=5000, tol=1e-8).fit(x.numpy(), y.numpy())
    wanted = torch.from_numpy(plain.predict_log_proba(test_x.numpy()))
    if gap == 1.5:
        got = dataclasses.replace(probe, trust=1.0).log_shares(test_x)
        assert (got - wanted).gather(1, test_y[:, None]).mean().abs() < 0.01
    nats = (probe.log_shares(test_x) - wanted).gather(1, test_y[:, None]).mean()
    assert nats > -0.01 and (gap == 1.5 or nats > 0)  # what the trust adds


def test_a_class_that_was_not_trained_is_finite_and_gains_nothing():
    x, y = gaussians(600, 4.0, 0)
    seen = y < 2
    probe = linear_probe(x[seen], y[seen], x[~seen], y[~seen])
    assert (probe.accuracy, probe.nats) == (0, pytest.approx(0, abs=1e-9))
    mixed = linear_probe(x[seen], y[seen], x, y)
    assert 0.1 < mixed.nats < math.log(2) and math.isfinite(mixed.nats_interval[0])


def test_rare_classes_and_few_groups_train():
    x, y = gaussians(300, 4.0, 0)
    y[y == 2] = 0
    y[7] = 2
    assert linear_probe(x, y, x, y, train_groups=torch.zeros(300, dtype=torch.int64)).train_groups == 1
    by_class = linear_probe(x, y, x, y, train_groups=y)  # each fold lacks a class
    assert by_class.train_groups == 3 and math.isfinite(by_class.nats)


def test_what_rounding_leaves_of_an_erased_column_is_not_read():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(4000, 8, generator=generator), torch.arange(4000) % 2
    x[:, 0] = 1e-8 * y
    probe = linear_probe(x[:2000], y[:2000], x[2000:], y[2000:])
    assert not probe.leaks and abs(probe.nats) < 0.002


def test_groups_that_share_much_widen_the_interval():
    generator = torch.Generator().manual_seed(4)
    groups = torch.arange(4000) // 50
    y = torch.randint(2, (80,), generator=generator)[groups]
    x = torch.randn(80, 4, generator=generator)[groups] + 0.3 * torch.randn(4000, 4, generator=generator)
    x[:, 0] += 1.5 * y
    parts = [part for half in (groups < 40, groups >= 40) for part in (x[half], y[half])]
    grouped = linear_probe(*parts, groups=groups[groups >= 40], train_groups=groups[groups < 40])
    alone = linear_probe(*parts)
    width = [high - low for low, high in (grouped.nats_interval, alone.nats_interval)]
    assert width[0] > 2 * width[1] and (grouped.test_groups, alone.test_groups) == (40, 2000)


def test_few_groups_leak_nothing_and_say_so():
    x, y = gaussians(600, 8.0, 0)
    probe = linear_probe(x[:300], y[:300], x[300:], y[300:], groups=torch.arange(300) % 5)
    assert probe.accuracy > 0.9 and not probe.leaks and probe.nats_interval == (-math.inf, math.inf)
    assert "too few groups to tell" in str(probe)


def test_a_group_in_both_parts_and_other_bad_groups():
    x, y = gaussians(40, 1.0, 0)
    groups = torch.arange(40)
    with pytest.raises(ValueError, match=r"groups 10, 11, .* came to train the probe and to test it"):
        linear_probe(x, y, x, y, groups=groups + 10, train_groups=groups)
    with pytest.raises(ValueError, match=r"shape \(39,\), expected integers \(40,\)"):
        linear_probe(x, y, x, y, groups=groups[:39])
    with pytest.raises(TypeError, match="float32"):
        linear_probe(x, y, x, y, groups=groups.float())
    with pytest.raises(ValueError, match="y holds the class -1"):
        linear_probe(x, y - 1, x, y)


def test_a_probe_says_what_it_found() -> None:
    found = Probe(0.5, 0.5, 0.0, (0.49, 0.51), (-1e-7, 1e-7), 100, 100, 10, 10)
    assert "it found nothing to go by" in str(found) and "above" not in str(found)
    assert str(found._replace(accuracy_interval=(0.51, 0.52))).endswith("accuracy above the constant")
    assert str(found._replace(nats=0.02, nats_interval=(0.01, 0.03))).endswith("leaks")


@pytest.mark.parametrize("size", [2e38, 1e19, -1e19])
def test_numbers_whose_squares_overflow_are_refused(size):
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    for train, test in ((x * size, x), (x, x * size)):
        with pytest.raises(ValueError, match="whose squares overflow float32"):
            linear_probe(train.clamp(-3e38, 3e38), y, test.clamp(-3e38, 3e38), y)
