"""SPLINCE: the concept is gone, the covariance with the task stays, and no nearer map does both."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from cases import HARD
from laws import Used, within
from torch import Tensor

from leace_fast import METHODS, Moments, leace
from leace_fast.methods import splince


def problem(seed: int = 0, tasks: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, the concept's classes, and tasks that depend on both."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (800,), generator=generator)
    x = cases.correlated(800, 10, generator) + torch.randn(3, 10, generator=generator, dtype=torch.float64)[y]
    noise = torch.randn(800, tasks, generator=generator, dtype=torch.float64)
    return x + 1, y, x @ torch.randn(10, tasks, generator=generator, dtype=torch.float64) + noise + y[:, None]


@pytest.mark.parametrize("tasks", [1, 3])
def test_keeps_the_covariance_where_leace_loses_it(tasks: int) -> None:
    x, y, z = problem(tasks=tasks)
    concept, task = Moments(10, 3).update(x, y), Moments(10, target_dim=tasks).update(x, z)
    eraser = splince(concept, task)
    before = task.cross_covariance
    after = Moments(10, target_dim=tasks).update(eraser(x), z).cross_covariance
    within(after - before, 1e-12 * before.abs().max(), "covariance with the task")
    within(Moments(10, 3).update(eraser(x), y).class_mean_differences, 1e-12, "class means")
    lost = Moments(10, target_dim=tasks).update(leace(concept)(x), z).cross_covariance
    assert (lost - before).norm() > 0.05 * before.norm(), "LEACE loses some of it"
    assert eraser.rank == 2 and eraser.method == "splince" and METHODS["splince"].needs


@pytest.mark.parametrize("name", [n for n in HARD if n != "class share 1e-5"])
@pytest.mark.filterwarnings("ignore:not erased")
def test_task_is_kept_on_hard_data(name: str) -> None:
    data = HARD[name]()
    method = next(m for m in cases.CASES if m.name == "splince")
    if not method.suits(data):
        pytest.skip("no dimension is left for a task")
    task = data.task(data.x.double())
    eraser = method.on(data, data.x.double())
    scale = Used(data).scale
    change = (eraser.left @ (eraser.right @ task.cross_covariance)).flatten() / scale
    spread = math.sqrt(float(task.target_covariance))
    within(change / spread, 1e-11, "covariance with the task, in deviations")


def test_is_the_projection_of_the_paper() -> None:
    """P = W^+ V (U' V)^-1 U' W with W the inverse root of the covariance, U and V as in its theorem 1."""
    x, y, z = problem(1)
    concept, task = Moments(10, 3).update(x, y), Moments(10, target_dim=1).update(x, z)
    values, vectors = torch.linalg.eigh(concept.covariance)
    white, back = vectors * values.rsqrt() @ vectors.mT, vectors * values.sqrt() @ vectors.mT
    a, b = white @ concept.cross_covariance[:, 1:], white @ task.cross_covariance
    u = torch.linalg.svd(a)[0][:, 2:]  # of the concept's complement
    v = torch.cat([b, torch.linalg.svd(torch.cat([a, b], 1))[0][:, 3:]], 1)
    paper = back @ v @ torch.linalg.inv(u.mT @ v) @ u.mT @ white
    eraser = splince(concept, task, shrinkage=False)
    ours = torch.eye(10, dtype=torch.float64) - eraser.left @ eraser.right
    within(ours - paper, 1e-10, "projection")


def test_no_map_that_does_both_is_nearer() -> None:
    """The gradient of the change vanishes along every direction that keeps both constraints."""
    x, y, z = problem(2)
    concept, task = Moments(10, 3).update(x, y), Moments(10, target_dim=1).update(x, z)
    eraser = splince(concept, task, shrinkage=False)
    gradient = eraser.left @ eraser.right @ concept.covariance
    fixed = torch.linalg.qr(torch.cat([concept.cross_covariance[:, 1:], task.cross_covariance], 1))[0]
    free = gradient - gradient @ fixed @ fixed.mT
    assert free.norm() < 1e-10 * gradient.norm()


def test_report_is_true() -> None:
    x, y, z = problem()
    concept, task = Moments(10, 3).update(x, y), Moments(10, target_dim=1).update(x, z)
    eraser, plain = splince(concept, task), leace(concept)
    assert eraser.report is not None and plain.report is not None
    assert eraser.report.change == pytest.approx(float((eraser(x) - x).square().sum(1).mean()), rel=1e-9)
    assert eraser.report.change >= plain.report.change
    assert eraser.report.ridge == plain.report.ridge and "ridge" in str(eraser.report)


def test_refuses_a_task_that_is_the_concept() -> None:
    x, y, z = problem()
    concept = Moments(10, 3).update(x, y)
    with pytest.raises(ValueError, match="share a direction of the 10 .* what is to be erased cannot be kept too"):
        splince(concept, concept)
    with pytest.raises(ValueError, match="share a direction"):
        splince(concept, Moments(10, 2).update(x, (y == 1).long()))
    with pytest.raises(ValueError, match="differ in dim: 10, 4"):
        splince(concept, Moments(4, 2))
    near = Moments(10, target_dim=1).update(x, (y == 1)[:, None] + 1e-2 * z)
    with pytest.raises(ValueError, match="times as much as erasing alone, at most 100.0 is allowed"):
        splince(concept, near)
    options: dict[str, Any] = {"max_change_ratio": math.inf}
    assert splince(concept, near, **options).rank == 2
