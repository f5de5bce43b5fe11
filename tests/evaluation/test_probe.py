"""Linear probes against cases whose answer is known."""

from __future__ import annotations

import pytest
import torch

from leace_fast.evaluation import linear_probe
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
