"""Intervals by the bootstrap over groups: rows of one text, or of one speaker, are no independent draws."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

RESAMPLES = 1000
COVERAGE = 0.95
# With fewer, chance gives all of them one sign too often: 5 do in 1 of 32.
FEWEST_GROUPS = 6
# More are joined, evenly: it leaves the variance of the mean, and a draw costs no more than this.
MOST_GROUPS = 2048
SEED = 0x1EACE  # one that nobody's data were drawn with

Interval = tuple[float, float]
NOTHING: Interval = (-math.inf, math.inf)


def group_intervals(values: Tensor, groups: Tensor) -> list[Interval]:
    """Return the 95 % interval of the mean of each column, by the percentiles of a bootstrap over groups.

    The percentiles are moved outwards for few groups, as Student's t is; below 6 groups nothing can be said, and the
    interval is all numbers.

    Args:
        values: (rows, columns), any floating dtype; computed in float64.
        groups: (rows,) int64 numbers 0, 1, ... of the groups.

    Source: Efron 1979 (the bootstrap); Hesterberg 2015, https://arxiv.org/abs/1411.5279, section 3 (percentiles
    for few groups).

    >>> low, high = group_intervals(torch.ones(20, 1), torch.arange(20) // 2)[0]
    >>> low, high
    (1.0, 1.0)
    """
    count = int(groups.max()) + 1
    if count < FEWEST_GROUPS:
        return [NOTHING] * values.shape[1]
    groups, joined = groups % MOST_GROUPS, min(count, MOST_GROUPS)
    columns = torch.cat([values.double(), torch.ones(len(values), 1, dtype=torch.float64)], 1)
    sums = torch.zeros(joined, columns.shape[1], dtype=torch.float64).index_add_(0, groups, columns)
    drawn = _weights(joined) @ sums
    means = drawn[:, :-1] / drawn[:, -1:]
    tail = _tail(joined)
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


@lru_cache(maxsize=4)
def _weights(count: int) -> Tensor:
    """How often each group is drawn in each resample, (resamples, groups) float64: always the same draws."""
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(SEED))
    ones = torch.ones(1, dtype=torch.float64).expand(RESAMPLES, count)
    return torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(1, drawn, ones)


def _tail(count: int) -> float:
    """The share of resamples that lies beyond either end of the interval."""
    normal = torch.distributions.Normal(0.0, 1.0)
    return normal.cdf(torch.tensor(-math.sqrt(count / (count - 1)) * _student(count - 1))).item()


def _student(freedom: int) -> float:
    """The quantile of Student's t that leaves half of what is not covered above it, by bisection of its integral."""
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        points = torch.linspace(0, middle, 2001, dtype=torch.float64)
        density = torch.exp(scale - (freedom + 1) / 2 * torch.log1p(points**2 / freedom))
        covered = 2 * torch.trapezoid(density, points).item()
        low, high = (middle, high) if covered < COVERAGE else (low, middle)
    return low
