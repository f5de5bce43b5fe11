"""Intervals by the bootstrap over groups: what they cover."""

from __future__ import annotations

import math

import pytest
import torch

from leace_fast.evaluation._intervals import FEWEST_GROUPS, MOST_GROUPS, group_intervals


def draw(groups: int, rows: int, within: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of mean 0, of which the rows of a group share a part."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.arange(groups).repeat_interleave(rows)
    shared = torch.randn(groups, generator=generator)[of]
    return shared + within * torch.randn(groups * rows, generator=generator), of


@pytest.mark.parametrize(("groups", "rows", "within"), [(6, 20, 0.5), (20, 5, 1.0), (200, 3, 2.0)])
def test_they_cover_the_mean_as_often_as_they_say(groups, rows, within):
    covered = 0
    for seed in range(300):
        values, of = draw(groups, rows, within, seed)
        ((low, high),) = group_intervals(values[:, None], of)
        covered += low < 0 < high
    assert 0.90 <= covered / 300 <= 0.995


def test_rows_of_a_group_are_not_taken_for_independent_ones():
    values, of = draw(100, 100, 0.1, 0)
    ((low, high),) = group_intervals(values[:, None], of)
    ((narrow, wide),) = group_intervals(values[:, None], torch.arange(len(values)))
    wanted = 2 * 1.96 * values.reshape(100, 100).mean(1).std().item() / 10
    assert high - low == pytest.approx(wanted, rel=0.1)
    assert wide - narrow < 0.2 * (high - low)


def test_more_groups_than_are_drawn_give_the_same_width():
    values = torch.randn(3 * MOST_GROUPS + 17, 2, generator=torch.Generator().manual_seed(0))
    for column, (low, high) in zip(values.mT, group_intervals(values, torch.arange(len(values))), strict=True):
        assert high - low == pytest.approx(2 * 1.96 * column.std().item() / math.sqrt(len(column)), rel=0.1)
        assert low < column.mean() < high


def test_of_few_groups_nothing_is_said():
    assert group_intervals(torch.ones(10, 1), torch.arange(10) % (FEWEST_GROUPS - 1)) == [(-math.inf, math.inf)]
    assert group_intervals(torch.ones(12, 1), torch.arange(12) % FEWEST_GROUPS) == [(1, 1)]


def test_the_same_rows_give_the_same_interval():
    values, of = draw(30, 4, 1.0, 0)
    assert group_intervals(values[:, None], of) == group_intervals(values[:, None], of)
