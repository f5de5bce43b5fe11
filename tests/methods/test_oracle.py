"""Oracle erasure: with the labels at hand nothing is nearer; and the order of all erasers' changes."""

from __future__ import annotations

import importlib.util

import cases
import pytest
import torch
from laws import Used, within
from torch import Tensor

from leace_fast import METHODS, ConditionalEraser, Moments, TargetEraser, leace
from leace_fast.methods import oracle


@pytest.mark.parametrize("name", [n for n in cases.HARD if n != "class share 1e-5"])
@pytest.mark.filterwarnings("ignore:not erased")
def test_concept_is_gone_and_the_mean_kept(name: str) -> None:
    data = cases.HARD[name]()
    eraser, used = oracle(data.moments()), Used(data)
    out = eraser(used.x, data.y[used.keep])
    within(used.gaps(out) / used.scale[:, None], 1e-12, "class means")
    within((used.mean(out) - used.mean(used.x)) / used.scale, 1e-12, "mean")
    assert eraser.report is not None
    change = float(used.w @ (out - used.x).square().sum(1))
    assert eraser.report.change == pytest.approx(change, rel=1e-6)
    assert isinstance(eraser, ConditionalEraser if "num_classes" in data.options else TargetEraser)


def test_of_targets_is_the_residual_of_least_squares() -> None:
    data = cases.targets(500, 7, 3)
    design = torch.cat([data.y, torch.ones(500, 1, dtype=torch.float64)], 1)
    fitted = design @ torch.linalg.lstsq(design, data.x).solution
    out = oracle(data.moments())(data.x, data.y)
    within(out - (data.x - fitted + data.x.mean(0)), 1e-9, "residual")


def erase(name: str, data: cases.Data) -> Tensor | None:
    """Return the rows after a method of the table, or None where it is not made for them."""
    method = METHODS[name]
    moments = data.moments(per_class=True) if data.options.get("num_classes") else data.moments()
    if name == "splince":
        return method(moments, data.task(), max_change_ratio=1e9)(data.x)
    if name == "switch":
        return method(moments, to=0)(data.x)
    if name in ("oracle", "quadratic", "mimic"):
        return method(moments)(data.x, data.y)
    if name == "quadratic_editor":
        return method(moments)(data.x, data.y, 0)
    if name == "median" and data.num_classes == 2 and importlib.util.find_spec("datasketches"):
        return method([(data.x, data.y)])(data.x)
    return None if method.needs.startswith("passes") else method(moments)(data.x)


@pytest.mark.parametrize("seed", range(50))
def test_oracle_then_leace_change_least(seed: int) -> None:
    """Of all erasers after which class means are equal to 1e-8, on random problems, none changes x less."""
    generator = torch.Generator().manual_seed(seed)
    classes = int(torch.randint(2, 5, (1,), generator=generator))
    condition = float(10 ** (4 * torch.rand(1, generator=generator)))
    data = cases.classes(600, 12, classes, condition=condition, seed=seed, noise=2.0)
    used, moments = Used(data), data.moments()

    def loss(out: Tensor) -> float:
        return float((out - data.x).square().sum(1).mean())

    best = loss(oracle(moments)(data.x, data.y))
    affine = loss(leace(moments, shrinkage=False)(data.x))
    assert best <= affine * (1 + 1e-9)
    complete = []
    for name in METHODS:
        out = None if name in ("leace", "oracle") else erase(name, data)
        if out is None or (used.gaps(out) / used.spread[:, None]).abs().max() > 1e-8:
            continue
        complete.append(name)
        least = best if METHODS[name].needs.endswith("applied") else affine
        assert loss(out) >= least * (1 - 1e-9), name
    assert {"orth", "mean_projection", "ace", "splince", "alf_qleace", "quadratic", "mimic", "switch"} <= set(complete)


def test_names_a_class_without_rows() -> None:
    data = cases.classes(200, 5, 2)
    with pytest.warns(UserWarning, match="class 2: it has no rows"):
        eraser = oracle(Moments(5, 3).update(data.x, data.y))
    out = eraser(data.x[:1], torch.tensor([2]))
    assert torch.equal(out, data.x[:1]), "rows of a class that was not seen stay as they are"
    with pytest.raises(ValueError, match="only class 0 has rows"):
        oracle(Moments(5, 2).update(data.x, torch.zeros(200, dtype=torch.int64)))


@pytest.mark.parametrize("k", [3, 7, 40])
@pytest.mark.parametrize("seed", range(4))
def test_targets_that_sum_to_one_are_one_fewer(k: int, seed: int) -> None:
    """One-hot labels as numbers: their covariance has an exact null direction, which rounding must not blow up."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, k, (500,), generator=generator)
    z = torch.nn.functional.one_hot(y, k).double()
    eraser = oracle(Moments(4, target_dim=k).update(x, z))
    assert eraser.report is not None and eraser.report.rank == k - 1
    torch.testing.assert_close(eraser(x, z), oracle(Moments(4, k).update(x, y))(x, y))
