"""From statistics to an eraser by each method, against its reference formula and the peer package where it has one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from concept_erasure import LeaceFitter, OracleFitter, QuadraticFitter
from torch import Tensor
from work import Work

import leace_fast as lf
from leace_fast.methods._rlace import LowRank

SIZES = ((256, 2), (256, 10), (768, 2), (768, 10))
SMALL = ((128, 2), (256, 6))  # for what takes a reference many seconds
QUADRATIC = ((128, 2), (128, 4), (384, 2))
ROWS_PER_DIMENSION = 8
STEPS = 5  # of INLP, and of the game of R-LACE


@dataclass(frozen=True)
class Problem:
    """The same rows in everybody's statistics."""

    x: Tensor
    y: Tensor
    moments: lf.Moments
    task: lf.Moments

    @property
    def onehot(self) -> Tensor:
        return torch.nn.functional.one_hot(self.y)


@functools.cache
def problem(dim: int, classes: int, per_class: bool = False) -> Problem:
    """Return correlated rows with classes that differ in mean and scale, and a task that depends on them."""
    generator = torch.Generator().manual_seed(dim + classes)
    rows = ROWS_PER_DIMENSION * dim * (classes if per_class else 1)
    y = torch.arange(rows) % classes
    mix = torch.eye(dim) + 0.5 * torch.randn(dim, dim, generator=generator) / dim**0.5
    means = torch.randn(classes, dim, generator=generator) * 4 / dim**0.5
    x = (torch.randn(rows, dim, generator=generator) * (1 + 0.2 * y[:, None]) @ mix + means[y]).double()
    target = x[:, :1] + torch.randn(rows, 1, generator=generator)
    moments = lf.Moments(dim, classes, per_class=per_class).update(x, y)
    return Problem(x, y, moments, lf.Moments(dim, target_dim=1).update(x, target))


def gap(given: Problem, out: Tensor) -> float:
    """Return the class means that remain apart, over those before."""
    after = lf.Moments(given.x.shape[1], given.moments.num_classes).update(out, given.y)
    return float(after.class_mean_differences.norm() / given.moments.class_mean_differences.norm())


def cached(fitter: LeaceFitter | OracleFitter | QuadraticFitter) -> Callable[[], Any]:
    """Return a fit of the peer's with nothing cached."""

    def fit() -> Any:
        vars(fitter).pop("_cached_eraser", None)
        return fitter.eraser

    return fit


@pytest.mark.parametrize(("dim", "classes"), SIZES)
@pytest.mark.parametrize("peer", ["leace-fast", "concept-erasure", "NumPy"])
def bench_orth(measure, dim: int, classes: int, peer: str) -> None:
    given = problem(dim, classes)
    fitter = LeaceFitter(dim, classes, method="orth", dtype=torch.float64, svd_tol=1e-9)
    fitter.update(given.x, given.onehot)
    columns, mean = given.moments.cross_covariance.numpy(), given.moments.mean
    fits = {
        "leace-fast": lambda: lf.methods.orth(given.moments),
        "concept-erasure": cached(fitter),
        "NumPy": lambda: projection(columns, mean),
    }
    error = gap(given, fits[peer]()(given.x))
    assert error < 1e-9
    rank = classes - 1
    work = Work(f"orth d={dim} k={classes}", 8 * 3 * dim * rank, 4 * dim * rank**2, torch.float64)
    measure(work, peer, error, fits[peer])


@pytest.mark.parametrize(("dim", "classes"), SIZES)
@pytest.mark.parametrize("peer", ["leace-fast", "NumPy"])
def bench_mean_projection(measure, dim: int, classes: int, peer: str) -> None:
    given = problem(dim, classes)
    means = given.moments.class_means
    columns, origin = (means[1:] - means[:1]).mT.numpy(), torch.zeros(dim, dtype=torch.float64)
    fits = {
        "leace-fast": lambda: lf.methods.mean_projection(given.moments),
        "NumPy": lambda: projection(columns, origin),
    }
    error = gap(given, fits[peer]()(given.x))
    assert error < 1e-9
    rank = classes - 1
    work = Work(f"mean projection d={dim} k={classes}", 8 * 3 * dim * rank, 4 * dim * rank**2, torch.float64)
    measure(work, peer, error, fits[peer])


def projection(columns: numpy.ndarray, point: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the projection about a point that drops the left singular vectors of some columns."""
    basis, values, _ = numpy.linalg.svd(columns, full_matrices=False)
    kept = torch.from_numpy(basis[:, values > 1e-9 * values[0]])
    return lambda x: x - (x - point) @ kept @ kept.mT


@pytest.mark.parametrize(("dim", "classes"), SIZES)
@pytest.mark.parametrize("peer", ["leace-fast", "concept-erasure"])
def bench_oracle(measure, dim: int, classes: int, peer: str) -> None:
    given = problem(dim, classes)
    fitter = OracleFitter(dim, classes, dtype=torch.float64)
    fitter.update(given.x, given.onehot)
    labels = given.y if peer == "leace-fast" else given.onehot
    fit = (lambda: lf.methods.oracle(given.moments)) if peer == "leace-fast" else cached(fitter)
    error = gap(given, fit()(given.x, labels))  # type: ignore[operator]
    assert error < (1e-9 if peer == "leace-fast" else 1e-2)
    work = Work(f"oracle d={dim} k={classes}", 8 * 2 * dim * classes, 2 * dim * classes, torch.float64)
    measure(work, peer, error, fit)


@pytest.mark.parametrize(("dim", "classes"), SIZES)
@pytest.mark.parametrize("peer", ["leace-fast", "NumPy"])
def bench_splince(measure, dim: int, classes: int, peer: str) -> None:
    """Beside the formula of the paper, with an eigendecomposition and full bases."""
    given = problem(dim, classes)
    covariance, concept, task = (
        part.numpy()
        for part in (given.moments.covariance, given.moments.cross_covariance[:, 1:], given.task.cross_covariance)
    )

    def by_numpy() -> Tensor:
        values, vectors = numpy.linalg.eigh(covariance)
        white, back = (vectors / values**0.5) @ vectors.T, (vectors * values**0.5) @ vectors.T
        a, b = white @ concept, white @ task
        u = numpy.linalg.svd(a)[0][:, a.shape[1] :]
        both = numpy.concatenate([a, b], 1)
        v = numpy.concatenate([b, numpy.linalg.svd(both)[0][:, both.shape[1] :]], 1)
        return torch.from_numpy(back @ v @ numpy.linalg.solve(u.T @ v, u.T @ white))

    fit = {"leace-fast": lambda: lf.methods.splince(given.moments, given.task), "NumPy": by_numpy}[peer]
    found = fit()
    mean = given.moments.mean
    out = found(given.x) if isinstance(found, lf.Eraser) else (given.x - mean) @ found.mT + mean
    error = gap(given, out)
    assert error < 1e-9
    rank = classes - 1
    work = Work(
        f"splince d={dim} k={classes}",
        8 * (dim * (dim + 1) // 2 + 3 * dim * rank),
        dim**3 // 3 + 4 * dim**2 * rank,
        torch.float64,
    )
    measure(work, peer, error, fit)


@pytest.mark.parametrize(("dim", "classes"), SMALL)
@pytest.mark.parametrize("peer", ["leace-fast", "passes over the rows"])
def bench_inlp(measure, dim: int, classes: int, peer: str) -> None:
    """Classifiers by least squares, from the moments and from the projected rows; the same steps."""
    given = problem(dim, classes)
    rows, targets = given.x - given.x.mean(0), given.onehot.double() - given.onehot.double().mean(0)

    def by_passes() -> Tensor:
        basis = rows.new_zeros(dim, 0)
        for _ in range(STEPS):
            weights = torch.linalg.lstsq(rows - rows @ basis @ basis.mT, targets, driver="gelsd").solution
            left, values, _ = torch.linalg.svd(weights - basis @ (basis.mT @ weights), full_matrices=False)
            basis = torch.cat([basis, left[:, values > 1e-6 * values[0]]], 1)
        return basis

    def by_moments() -> Tensor:
        return lf.methods.inlp(given.moments, tolerance=0.0, max_iterations=STEPS).left

    fit = by_moments if peer == "leace-fast" else by_passes
    one, two = fit(), by_moments()
    error = float((one @ one.mT - two @ two.mT).abs().max())
    assert error < 1e-6
    rank = STEPS * (classes - 1)
    work = Work(
        f"{STEPS} steps of inlp d={dim} k={classes}",
        8 * (dim * (dim + 1) // 2 + dim * rank),
        dim**3 // 3 + 4 * dim**2 * rank,
        torch.float64,
    )
    measure(work, peer, error, fit)


@pytest.mark.parametrize(("dim", "classes"), QUADRATIC)
@pytest.mark.parametrize("peer", ["leace-fast", "concept-erasure"])
@pytest.mark.parametrize("editor", [False, True], ids=["eraser", "editor"])
def bench_quadratic(measure, dim: int, classes: int, peer: str, editor: bool) -> None:
    given = problem(dim, classes, per_class=True)
    fitter = QuadraticFitter(dim, classes, dtype=torch.float64, shrinkage=False)
    fitter.update(given.x, given.y)
    method = lf.methods.quadratic_editor if editor else lf.methods.quadratic
    fits = {
        "leace-fast": lambda: method(given.moments),
        "concept-erasure": fitter.editor if editor else cached(fitter),
    }
    out = fits[peer]()(given.x, given.y, *([0] if editor else []))
    after = lf.Moments(dim, classes, per_class=True).update(out, given.y).class_covariances
    error = float((after - after[0]).norm() / after[0].norm())
    # The peer divides by rows less one in each class.
    assert error < (1e-9 if peer == "leace-fast" else 1e-2)
    triangle, maps = dim * (dim + 1) // 2, classes * (classes - 1) if editor else classes
    work = Work(
        f"quadratic{' editor' if editor else ''} d={dim} k={classes}",
        8 * (classes * triangle + maps * dim**2),
        12 * maps * dim**3,
        torch.float64,
    )
    measure(work, peer, error, fits[peer])


@pytest.mark.parametrize(("dim", "classes"), SMALL)
@pytest.mark.parametrize("peer", ["leace-fast", "dense"])
def bench_rlace_step(measure, dim: int, classes: int, peer: str) -> None:
    """The projection's steps of the game: of low rank, and with all eigenvectors of the d x d matrix."""
    generator = torch.Generator().manual_seed(0)
    pulls = [
        (
            torch.randn(dim, classes, generator=generator, dtype=torch.float64),
            torch.randn(classes, dim, generator=generator, dtype=torch.float64),
        )
        for _ in range(STEPS)
    ]
    rank = classes - 1

    def low() -> Tensor:
        matrix = LowRank.zero(dim, pulls[0][0])
        for reach, weight in pulls:
            matrix = matrix.ascended(reach, weight, 0.1 / dim).onto_fantope(rank)
        return matrix.basis * matrix.weights @ matrix.basis.mT

    def dense() -> Tensor:
        matrix = pulls[0][0].new_zeros(dim, dim)
        for reach, weight in pulls:
            pull = reach @ weight
            values, vectors = torch.linalg.eigh(matrix - 0.05 / dim * (pull + pull.mT))
            clipped = LowRank(vectors.flip(1), values.flip(0)).onto_fantope(rank)
            matrix = clipped.basis * clipped.weights @ clipped.basis.mT
        return matrix

    fit = low if peer == "leace-fast" else dense
    error = float((fit() - dense()).abs().max())
    assert error < 1e-4
    work = Work(
        f"{STEPS} steps of rlace d={dim} k={classes}",
        8 * STEPS * 2 * dim * classes,
        STEPS * 12 * dim * classes**2,
        torch.float64,
    )
    measure(work, peer, error, fit)
