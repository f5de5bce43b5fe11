"""The laws of `laws.py` over every statistic, method, dtype and hard data set of `cases.py`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import cases
import laws
import pytest
import torch
from cases import CASES, HARD, PRECISIONS, STATISTICS, Case, Data, Precision, Statistic
from fits import Shared, digest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ERASER_LAWS, MOMENTS_LAWS, Update

EXAMPLES = settings().max_examples  # of the profile in use
A_TENTH = settings(max_examples=max(EXAMPLES // 10, 5))  # of each entry of a table; all laws meet each of them
SLOW_DATA = {"class share 1e-5"}


@contextmanager
def named(law) -> Iterator[None]:
    """Say which law is broken where several are held against one example."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{law.__name__}: {error}") from error


@st.composite
def streams(draw: st.DrawFn, statistic: Statistic, dtype: torch.dtype) -> list[Update]:
    """Draw three to six updates, some of them empty, of correlated rows at an offset."""
    dim = draw(st.sampled_from([1, 2, 5, 33]))
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 7, 50, 200]), min_size=3, max_size=6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    offset = draw(st.sampled_from([0.0, 1.0, 100.0]))
    return [update(statistic, dtype, size, dim, offset, generator) for size in sizes]


def update(
    statistic: Statistic, dtype: torch.dtype, rows: int, dim: int, offset: float, generator: torch.Generator
) -> Update:
    x = cases.correlated(rows, dim, generator, condition=100.0) + offset
    y: torch.Tensor | None = None
    if target_dim := statistic.options.get("target_dim"):
        y = torch.randn(rows, target_dim, generator=generator, dtype=torch.float64) - offset
    elif statistic.options:
        # Few rows have the last class, and some none.
        labels = (torch.rand(rows, generator=generator).square() * statistic.options["num_classes"]).long()
        y = labels.masked_fill(torch.rand(rows, generator=generator) < 0.1, -100)
    mask = torch.rand(rows, generator=generator) < 0.8 if statistic.masked else None
    weight = None
    if statistic.weighted:
        weight = torch.rand(rows, generator=generator, dtype=torch.float64) * 3
        weight[torch.rand(rows, generator=generator) < 0.1] = 0
    groups = torch.randint(4, (rows,), generator=generator) if statistic.grouped else None
    return {"x": x.to(dtype), "y": y, "mask": mask, "weight": weight, "groups": groups}


@pytest.mark.hypothesis
@pytest.mark.parametrize("statistic", STATISTICS, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_moments(precision: Precision, statistic: Statistic) -> None:
    @A_TENTH
    @given(streams(statistic, precision.dtype))
    def holds(updates: list[Update]) -> None:
        before = [{name: part if part is None else part.clone() for name, part in one.items()} for one in updates]
        for law in MOMENTS_LAWS:
            with named(law):
                law(functools.partial(statistic.moments, updates[0]["x"].shape[1]), updates, precision)
                for one, other in zip(updates, before, strict=True):
                    laws.assert_same_bits(one, other)

    holds()


@pytest.mark.parametrize("name", [name for name in HARD if name not in SLOW_DATA])
@pytest.mark.parametrize("law", MOMENTS_LAWS, ids=lambda law: law.__name__)
def test_moments_of_hard_data(law, name: str) -> None:
    data = hard(name)
    ends = [0, 1, len(data.x) // 3, len(data.x) - 1, len(data.x)]  # a class may come in the last row alone
    parts = {"x": data.x, "y": data.y, "mask": data.mask, "weight": data.weight}
    updates = [
        {part: rows if rows is None else rows[begin:end] for part, rows in parts.items()}
        for begin, end in zip(ends, ends[1:], strict=False)
    ]
    precision = next(precision for precision in PRECISIONS if precision.dtype == data.x.dtype)
    law(lambda: data.new(), [updates[1], updates[0], *updates[2:]], precision)


@settings(max_examples=max(EXAMPLES // 4, 1))
@given(
    cuts=st.lists(st.integers(0, 9000), max_size=6),
    statistic=st.sampled_from(STATISTICS),
    precision=st.sampled_from(PRECISIONS),
)
def test_chunks_across_blocks(cuts: list[int], statistic: Statistic, precision: Precision) -> None:
    whole = update(statistic, precision.dtype, 9000, 3, 10.0, torch.Generator().manual_seed(len(cuts)))
    ends = sorted({0, *cuts, 9000})
    updates = [
        {name: part if part is None else part[begin:end] for name, part in whole.items()}
        for begin, end in zip(ends, ends[1:], strict=False)
    ]
    one, other = statistic.moments(3).update(**whole), laws.one_pass(lambda: statistic.moments(3), updates)
    laws.assert_same_bits(laws.bits(one), laws.bits(other))


# The laws of one method on one data set follow each other, and share its erasers.
@pytest.mark.parametrize("law", ERASER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW_DATA else n for n in HARD])
@pytest.mark.filterwarnings("ignore:not erased")
def test_erasers(name: str, case: Case, law) -> None:
    data = hard(name)
    if not case.suits(data):
        pytest.skip("not made for such data")
    before, shared = digest(data, data.x), erasers_of(case.name, name)
    law(shared, data)
    assert digest(data, data.x) == before
    shared.check()


@pytest.mark.hypothesis
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.filterwarnings("ignore:not erased")
def test_erasers_of_any_data(precision: Precision, case: Case) -> None:
    @A_TENTH
    @given(
        rows=st.sampled_from([30, 100, 300]),
        dim=st.sampled_from([3, 8, 20]),
        num_classes=st.sampled_from([2, 3, 6]),
        real=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def holds(rows: int, dim: int, num_classes: int, real: bool, seed: int) -> None:
        data = (
            cases.targets(rows, dim, min(num_classes, dim), seed=seed)
            if real and case.targets
            else cases.classes(rows, dim, num_classes, seed=seed)
        )
        if not case.suits(data):
            return
        data, shared = data.to(precision.dtype), Shared.of(case)
        before = digest(data, data.x)
        for law in ERASER_LAWS:
            with named(law):
                law(shared, data)
                assert digest(data, data.x) == before
                shared.check()

    holds()


def test_a_law_that_changes_what_is_shared_is_found_out() -> None:
    shared, data = Shared.of(CASES[0]), hard("weighted")
    assert shared.on(data) is shared.on(data, data.x.clone()) and len(shared.erasers) == 1
    assert shared.on(data, data.x + 1) is not shared.on(data) and len(shared.erasers) == 2
    shared.check()
    shared.on(data)._factors[1].mul_(2)  # what no law may do
    with pytest.raises(AssertionError, match="an eraser of leace that is shared was changed"):
        shared.check()
    with pytest.raises(AssertionError, match="^mean_is_kept: moved"), named(laws.mean_is_kept):
        raise AssertionError("moved")


@functools.lru_cache(maxsize=1)
def erasers_of(case: str, name: str) -> Shared:
    """Return a method by name, for one data set: its laws come one after the other."""
    return Shared.of(next(one for one in CASES if one.name == case))


@functools.cache
def hard(name: str) -> Data:
    return HARD[name]()
