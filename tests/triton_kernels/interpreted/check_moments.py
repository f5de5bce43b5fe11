"""`Moments` through the Triton kernels, run by Triton's interpreter on the CPU, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from cases import Data
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from laws import Used, assert_same_bits, bits, settled_bits, within
from torch import Tensor

from leace_fast import Moments
from leace_fast.statistics import GPU_ROW_DTYPES, _kernels
from leace_fast.triton_kernels import configs

ROWS = 256  # of a block, so that a few hundred fill several


@pytest.fixture(autouse=True, scope="module")
def kernels_on_the_cpu() -> Iterator[None]:
    with patch.object(_kernels, "DEVICES", ["cpu"]), patch.object(configs, "block_rows", lambda dim: ROWS):
        yield


def laid_out(x: Tensor, generator: torch.Generator) -> Tensor:
    """Lay rows out with odd strides: every other column, or a window of a wider tensor."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), float("nan"), dtype=x.dtype)
    every_other, window = wide[..., 1 : 2 * x.shape[-1] : 2], wide[..., 3 : 3 + x.shape[-1]]
    return (every_other if torch.rand((), generator=generator) < 0.5 else window).copy_(x)


class Problem(NamedTuple):
    """Labelled rows, and all that may come with them."""

    seed: int
    lead: tuple[int, ...]
    dim: int
    dtype: torch.dtype
    offset: float
    kind: str
    classes: int
    labels: torch.dtype
    odd_strides: bool
    masked: bool
    weighted: bool
    precision: str

    def data(self) -> Data:
        generator, lead = torch.Generator().manual_seed(self.seed), self.lead
        unit = torch.logspace(-2, 2, self.dim)
        x = (torch.randn(*lead, self.dim, generator=generator) * unit + self.offset * unit).to(self.dtype)
        if self.kind == "targets":
            options: dict[str, Any] = {"target_dim": 2}
            y = torch.randn(*lead, 2, generator=generator) + 5
        else:
            options = {"num_classes": self.classes, "per_class": self.kind == "by class"}
            y = torch.randint(self.classes, lead, generator=generator)
            y[torch.rand(lead, generator=generator) < 0.2] = -100
            y = y.to(self.labels)
        if self.odd_strides and self.dim > 1:
            x = laid_out(x, generator)
        mask = torch.rand(lead, generator=generator) < 0.7 if self.masked else None
        weight = torch.rand(lead, generator=generator) * 3 if self.weighted else None
        if weight is not None:
            weight[torch.rand(lead, generator=generator) < 0.1] = 0
        return Data(x, y, options, mask=mask, weight=weight)


PROBLEMS = st.builds(
    Problem,
    seed=st.integers(0, 2**31),
    lead=st.sampled_from([(1,), (37,), (300,), (3, 111), (2, 3, 50), (4, 128)]),
    dim=st.sampled_from([1, 7, 64, 129]),
    dtype=st.sampled_from(GPU_ROW_DTYPES),
    offset=st.sampled_from([0.0, 30.0]),
    kind=st.sampled_from(["classes", "by class", "targets"]),
    classes=st.sampled_from([2, 5, 40]),
    labels=st.sampled_from([torch.int64, torch.int32, torch.int8]),
    odd_strides=st.booleans(),
    masked=st.booleans(),
    weighted=st.booleans(),
    precision=st.sampled_from(["high", "ieee", "low"]),
)
# Shrinking runs the interpreter for minutes.
DEPTH = settings(phases=[Phase.explicit, Phase.generate], deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(DEPTH, max_examples=6, derandomize=True)
@given(PROBLEMS)
def check_sums_against_float64(problem: Problem) -> None:
    against_float64(problem.data(), problem.precision)


@pytest.mark.slow
@settings(DEPTH, max_examples=10)
@given(PROBLEMS)
def check_sums_against_float64_at_length(problem: Problem) -> None:
    against_float64(problem.data(), problem.precision)


def flat(data: Data) -> Data:
    """Return the same rows without leading axes; rows of weight zero are masked."""
    last = data.x.ndim - 2
    mask = torch.ones(data.x.shape[:-1]) > 0 if data.mask is None else data.mask
    mask = mask if data.weight is None else mask & (data.weight > 0)
    y = data.y if data.y.is_floating_point() else data.y.long()
    weight = None if data.weight is None else data.weight.flatten()
    return Data(data.x.flatten(0, last), y.flatten(0, last), data.options, mask=mask.flatten(), weight=weight)


def against_float64(data: Data, precision: str) -> None:
    moments = Moments(data.x.shape[-1], **data.options, precision=precision)  # type: ignore[arg-type]
    moments.update(data.x, data.y, mask=data.mask, weight=data.weight)
    assert moments._sums.staged is None and moments._sums.on_device is not None, "the kernels did the work"
    if not moments.count:
        return
    used, state = Used(flat(data)), moments._flush()
    raw = torch.ones(len(used.x)).double() if data.weight is None else data.weight.flatten()[used.keep].double()
    assert moments.count == len(used.x) and moments.skipped == 0
    within(state.weights.sum() - raw.sum(), 1e-13 * raw.sum(), "weights")
    within(state.squared_weights.sum() - raw.square().sum(), 1e-13 * raw.square().sum(), "squared weights")
    moved = used.x - state.shift
    size = (raw[:, None] * moved.abs()).sum(0) + 1e-300
    groups = used.z if used.classes else torch.ones(len(used.x), 1, dtype=torch.float64)
    within(state.sums - groups.mT @ (moved * raw[:, None]), 1e-13 * size, "sums")
    if not used.classes:
        z = used.z - state.target_shift
        weighted = z * raw[:, None]
        within(state.target_sums - weighted.sum(0), 1e-12 * raw.sum(), "targets")
        within(state.target_second - weighted.mT @ z, 1e-12 * raw.sum(), "products of targets")
        within(state.cross - moved.mT @ weighted, 1e-12 * size[:, None] * (1 + z.abs().max()), "cross moment")
    centred = used.x - used.mean(used.x)
    scale = ((raw[:, None] * centred.square()).sum(0)).sqrt() + 1e-5 * size
    exact = (centred * raw[:, None]).mT @ centred
    unit = torch.outer(scale, scale)
    found = moments.covariance * raw.sum()
    within(found - exact, tolerance(data.x.dtype, precision, len(used.x)) * unit, "covariance")


def tolerance(dtype: torch.dtype, precision: str, rows: int) -> float:
    """Bound what rounding the tile leaves: 2^-9 of an entry for bfloat16, 2^-12 for float16, over many rows."""
    if dtype == torch.float32 and precision != "low":  # two parts hold 17 bits
        return 2e-6 + (2**-17 * 16 / rows**0.5 if precision == "high" else 0)
    return (2**-12 if dtype == torch.float16 else 2**-9) * 16 / rows**0.5


def labelled(rows: int, dim: int, dtype: torch.dtype, offset: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator) + offset
    return x.to(dtype), torch.randint(3, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def check_products_of_narrow_rows_are_exact(dtype: torch.dtype, offset: float) -> None:
    """Where the mean is zero nothing is subtracted; where it is far off, x - shift needs no rounding."""
    x, y = labelled(500, 20, dtype, offset)
    moments, used = Moments(20, 3).update(x, y), Used(Data(x, y, {"num_classes": 3}))
    error = (moments.covariance - used.covariance(used.x)) / torch.outer(used.spread, used.spread)
    within(error, 1e-6, "covariance")


def check_the_cut_of_the_stream_never_shows() -> None:
    x, y = labelled(900, 17, torch.bfloat16)
    y[::7] = -100
    mask = torch.rand(900) < 0.9
    whole = Moments(17, 3).update(x, y, mask=mask)
    for size in (256, 300, 77):
        cut = Moments(17, 3)
        for begin in range(0, 900, size):
            part = slice(begin, begin + size)
            cut.update(x[part], y[part], mask=mask[part])
        assert_same_bits(settled_bits(cut), settled_bits(whole))


def check_verbs_of_moments(tmp_path: Path) -> None:
    """Merge, remove, save, load and copy see what waits on the device, and leave others as they are."""
    one, two = (Moments(9, 3).update(*labelled(300, 9, torch.float32, 3.0, seed)) for seed in (1, 2))
    before = bits(two)
    both = one.copy().merge(two)
    assert_same_bits(bits(two), before)
    assert both.count == 600 and one.count == 300
    rest = both.copy().remove(two)
    within(rest.covariance - one.covariance, 1e-12, "covariance")
    both.save(tmp_path / "m")
    loaded = Moments.load(tmp_path / "m")
    more = labelled(100, 9, torch.float32, 3.0, 3)
    assert_same_bits(settled_bits(loaded.update(*more)), settled_bits(both.update(*more)))
    assert "waiting=100" in repr(both)
    assert both.relative_error == 2e-6


@pytest.mark.slow
def check_rows_of_other_dtypes_may_follow() -> None:
    """Narrow rows, wide ones and float64, which plain torch adds, with and without weights."""
    parts = [labelled(130, 6, dtype, 2.0, seed) for seed, dtype in enumerate([*GPU_ROW_DTYPES, torch.float64])]
    moments = Moments(6, 3)
    for x, y in parts:
        moments.update(x, y).update(x, y, weight=torch.ones(130))
    x = torch.cat([x.double() for x, _ in parts])  # all of them twice: the same means
    assert moments.count == 4 * 260
    within(moments.covariance - torch.cov(x.mT, correction=0), 3e-4, "covariance")
    within(moments.mean - x.mean(0), 1e-13, "mean")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def check_any_range(dtype: torch.dtype, scale: float) -> None:
    """Squares of these leave float32: the result is that of ordinary rows, rescaled."""
    x, y = labelled(400, 6, torch.bfloat16, 10.0)
    x = (x.double() * scale).to(dtype)
    moments, used = Moments(6, 3).update(x, y), Used(Data(x, y, {"num_classes": 3}))
    within((moments.covariance - used.covariance(used.x)) / torch.outer(used.spread, used.spread), 1e-4, "covariance")


def check_a_huge_first_token_and_a_drifting_mean() -> None:
    x, y = labelled(1024, 6, torch.float32, 100.0)
    x[0] = 1e5
    x[512:] += 4000
    moments, used = Moments(6, 3).update(x, y), Used(Data(x, y, {"num_classes": 3}))
    within((moments.covariance - used.covariance(used.x)) / torch.outer(used.spread, used.spread), 2e-6, "covariance")
    x = x[1:512]  # without the token, about means that were far from the first rows
    moments, used = Moments(6, 3).update(x, y[1:512]), Used(Data(x, y[1:512], {"num_classes": 3}))
    within(moments.covariance - used.covariance(used.x), 2e-6, "covariance")


def check_odd_columns() -> None:
    """Constant columns, repeated ones, and one that is zero but for some rows."""
    x, y = labelled(300, 6, torch.bfloat16)
    x[:, 0], x[:, 1], x[:, 3], x[:, 4] = 3.0, x[:, 2], 0.0, 0.0
    x[::50, 4] = 7.0
    moments, used = Moments(6, 3).update(x, y), Used(Data(x, y, {"num_classes": 3}))
    within(moments.covariance - used.covariance(used.x), 1e-5, "covariance")
    assert not moments.covariance[0].any() and not moments.covariance[3].any()
    assert moments.covariance[1, 2] == moments.covariance[1, 1] == moments.covariance[2, 2]


def test_rows_with_groups_and_rows_without_labels() -> None:
    """Which groups there are is found call by call; x alone is summed as one class."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(700, 8, generator=generator) + 3, torch.randint(-1, 3, (700,), generator=generator)
    y[y < 0] = -100
    groups = torch.arange(700) // 50
    found, plain = Moments(8, 3), Moments(8, 3).update(x, y)
    for begin in range(0, 700, 90):
        part = slice(begin, begin + 90)
        found.update(x[part], y[part], groups=groups[part])
    assert torch.equal(found.class_counts, plain.class_counts)
    within(found.covariance - plain.covariance, 1e-4, "covariance")
    cells = found.cells
    assert cells is not None and int(cells.counts.sum()) == int((y != -100).sum())
    means = torch.stack(
        [x[(groups == g) & (y == k)].double().mean(0) for g, k in zip(cells.groups, cells.classes, strict=True)]
    )
    within((cells.means - cells.means[0]) - (means - means[0]), 1e-12, "means of cells")
    alone = Moments(8).update(x, mask=y != -100)
    within(alone.mean - plain.mean, 1e-12, "mean")
    within(alone.covariance - plain.covariance, 1e-4, "covariance")
    assert plain.pooled().merge(alone).count == 2 * plain.count
