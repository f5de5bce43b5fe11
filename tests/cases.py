"""The tables that drive the laws: statistics, dtypes with their tolerances, methods, and data sets that are hard.

A new method adds a row to CASES, a new option of `Moments` a row to STATISTICS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from leace_fast import Eraser, Moments, methods


@dataclass(frozen=True)
class Statistic:
    """One way of making `Moments`, and what each update brings."""

    name: str
    options: dict[str, Any]
    weighted: bool = False
    masked: bool = False
    grouped: bool = False

    def moments(self, dim: int) -> Moments:
        return Moments(dim, **self.options)

    def __str__(self) -> str:
        return self.name


STATISTICS = [
    Statistic("2 classes", {"num_classes": 2}),
    Statistic("5 classes, masked", {"num_classes": 5}, masked=True),
    Statistic("3 classes, weighted", {"num_classes": 3}, weighted=True),
    Statistic("40 classes", {"num_classes": 40}),
    Statistic("2 classes, all options", {"num_classes": 2, "precision": "ieee", "nonfinite": "skip"}),
    Statistic("40 classes, weighted and masked", {"num_classes": 40}, weighted=True, masked=True),
    Statistic("by class", {"num_classes": 3, "per_class": True}),
    Statistic("by class, weighted and masked", {"num_classes": 2, "per_class": True}, weighted=True, masked=True),
    Statistic("1 target", {"target_dim": 1}),
    Statistic("3 targets, masked", {"target_dim": 3}, masked=True),
    Statistic("2 targets, weighted", {"target_dim": 2}, weighted=True),
    Statistic("3 classes, groups", {"num_classes": 3}, grouped=True),
    Statistic("2 classes, groups, weighted and masked", {"num_classes": 2}, weighted=True, masked=True, grouped=True),
    Statistic("x alone, weighted and masked", {}, weighted=True, masked=True),
]


@dataclass(frozen=True)
class Precision:
    """A dtype of rows and what may be expected of it."""

    dtype: torch.dtype
    moments: float  # correlation matrices of the same rows in another order differ by at most this
    gap: float  # class means apart after erasure, over max(std, |mean|), beyond the rounding of the output

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")


PRECISIONS = [
    Precision(torch.float64, moments=1e-12, gap=1e-12),
    Precision(torch.float32, moments=4e-6, gap=1e-5),
    # Numbers of few digits, at an offset: their products in float32 are rounded the same way again and again.
    Precision(torch.bfloat16, moments=5e-5, gap=2e-3),
    Precision(torch.float16, moments=5e-5, gap=2.5e-4),
]


@dataclass(frozen=True)
class Case:
    """One way of making an eraser, and what it promises."""

    name: str
    fit: Callable[..., Eraser]
    complete: bool = True  # erases all of the concept
    affine: bool = True  # has an offset
    keeps_mean: bool = True  # if it has one
    optimal: bool = False  # changes x least among all maps of its kind that erase the concept
    rescales: bool = True  # a rescaled x gives the rescaled eraser
    rotates: bool = False  # a rotated x gives the rotated eraser
    targets: bool = True  # takes real-valued targets too
    idempotent: bool = True
    ranked: bool = True  # the rank is at most that of the concept
    needs_task: bool = False  # fit takes the moments of a task too
    options: dict[str, Any] = field(default_factory=dict)  # of the moments

    def on(self, data: Data, x: Tensor | None = None) -> Eraser:
        """Return the eraser of a data set, or of other rows with the same labels."""
        moments = data.moments(x, **self.options)
        return self.fit(moments, data.task(x)) if self.needs_task else self.fit(moments)

    def suits(self, data: Data) -> bool:
        """Tell whether the method is made for a data set."""
        if not self.targets and "num_classes" not in data.options:
            return False
        # A task of its own needs a dimension beside those of the concept.
        return not self.needs_task or data.dim > 2 * data.options.get("num_classes", data.options.get("target_dim", 0))

    def __str__(self) -> str:
        return self.name


def other_rows(moments: Moments) -> Moments:
    """Return moments of the same rows and of others in their units, by which least change may be measured."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(3 * moments.dim + 50, moments.dim, generator=generator, dtype=torch.float64)
    return moments.pooled().update(rows.mul_(moments.variance.sqrt()).add_(moments.mean))


CASES = [
    Case("leace", lambda m: methods.leace(m, shrinkage=False), optimal=True, rotates=True),
    Case("leace, shrinkage as it comes", methods.leace),
    Case("leace, shrunk", lambda m: methods.leace(m, shrinkage=True)),
    Case("leace, shrunk by 0.3", lambda m: methods.leace(m, shrinkage=0.3)),
    Case("leace, ridge", lambda m: methods.leace(m, ridge=1e-3)),
    Case(
        "leace, linear",
        lambda m: methods.leace(m, affine=False, max_cost_ratio=math.inf, shrinkage=False),
        affine=False,
        optimal=True,
        rotates=True,
    ),
    Case(
        "leace, rank 1",
        lambda m: methods.leace(m, rank=1, shrinkage=False),
        complete=False,
        optimal=False,
        rotates=True,
    ),
    Case("leace, of two concepts in one", lambda m: methods.leace([m, m], shrinkage=False), optimal=True, rotates=True),
    Case(
        "leace, of another metric", lambda m: methods.leace(m, metric=other_rows(m), shrinkage=False), keeps_mean=False
    ),
    Case("orth", methods.orth, rescales=False, rotates=True),
    Case("orth, rank 1", lambda m: methods.orth(m, rank=1), complete=False, rescales=False),
    Case("mean projection", methods.mean_projection, affine=False, rescales=False, rotates=True, targets=False),
    Case(
        "difference in means", methods.difference_in_means, complete=False, affine=False, rescales=False, targets=False
    ),
    Case("ace", methods.ace, keeps_mean=False, rescales=False, rotates=True, targets=False),
    Case(
        "switch to 0", lambda m: methods.switch(m, to=0, shrinkage=False), keeps_mean=False, rotates=True, targets=False
    ),
    Case("inlp", methods.inlp, complete=False, rescales=False, ranked=False),
    Case(
        "splince",
        lambda m, task: methods.splince(m, task, shrinkage=False, max_change_ratio=math.inf),
        needs_task=True,
    ),
    Case(
        "alf-qleace",
        methods.alf_qleace,
        rescales=False,
        targets=False,
        idempotent=False,
        ranked=False,
        options={"per_class": True},
    ),
    Case("random", lambda m: methods.random_subspace(m, 1), complete=False, rescales=False),
]


@dataclass(frozen=True)
class Data:
    """Rows with labels or targets."""

    x: Tensor
    y: Tensor
    options: dict[str, Any]
    rank: int | None = None  # true rank of the concept, where it is not classes - 1 or the number of targets
    mask: Tensor | None = None
    weight: Tensor | None = None
    groups: Tensor | None = None

    @property
    def dim(self) -> int:
        return self.x.shape[1]

    @property
    def num_classes(self) -> int:
        return self.options["num_classes"]

    def new(self) -> Moments:
        return Moments(self.dim, **self.options)

    def moments(self, x: Tensor | None = None, **options: Any) -> Moments:
        """Return the moments of the rows, or of other rows with the same labels."""
        x = self.x if x is None else x
        rows = {"mask": self.mask, "weight": self.weight, "groups": self.groups}
        return Moments(self.dim, **self.options, **options).update(x, self.y if self.options else None, **rows)

    def task(self, x: Tensor | None = None) -> Moments:
        """Return the moments of the same rows with a task of one target, which depends on the rows as they are."""
        generator = torch.Generator().manual_seed(99)
        unit = (self.x.double() - self.x.double().mean(0)) / (self.x.double().std(0) + 1e-300)
        reader = torch.randn(self.dim, 1, generator=generator, dtype=torch.float64)
        target = unit @ reader + torch.randn(len(self.x), 1, generator=generator, dtype=torch.float64)
        kept = (self.y != -100) if "num_classes" in self.options else torch.ones(len(self.x), dtype=torch.bool)
        kept = kept if self.mask is None else kept & self.mask
        x = self.x if x is None else x
        return Moments(self.dim, target_dim=1).update(x, target, mask=kept, weight=self.weight)

    def to(self, dtype: torch.dtype) -> Data:
        return replace(self, x=self.x.to(dtype))


def correlated(rows: int, dim: int, generator: torch.Generator, condition: float = 1e3) -> Tensor:
    """Return Gaussian rows whose covariance has the given condition number, in float64."""
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return x * torch.logspace(0, -math.log10(condition) / 2, dim, dtype=torch.float64) @ basis.mT


def classes(
    rows: int, dim: int, num_classes: int, *, condition: float = 1e3, seed: int = 0, noise: float = 1.0
) -> Data:
    """Return rows of classes of unlike sizes, whose means are apart in random directions."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(num_classes**2, (rows,), generator=generator).sqrt().long()
    y[:num_classes] = torch.arange(num_classes)
    means = torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    x = noise * correlated(rows, dim, generator, condition) + means[y] + 1
    return Data(x, y, {"num_classes": num_classes})


def targets(rows: int, dim: int, target_dim: int, *, seed: int = 0) -> Data:
    """Return rows that depend on real-valued targets, one of which nearly repeats another."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, target_dim, generator=generator, dtype=torch.float64)
    if target_dim > 1:
        z[:, 1] = z[:, 0] + 1e-3 * z[:, 1]
    x = correlated(rows, dim, generator) + z @ torch.randn(target_dim, dim, generator=generator, dtype=torch.float64)
    return Data(x + 1, z, {"target_dim": target_dim})


def layer_norm() -> Data:
    """Float32 output of a LayerNorm: centred rows of equal length, so the covariance has an exact null vector."""
    data = classes(600, 12, 3, seed=1)
    weight = 1 + torch.arange(12) / 12
    x = torch.nn.functional.layer_norm(data.x.float(), (12,), weight, torch.linspace(-1, 1, 12))
    return Data(x, data.y, data.options)


def huge_first_token() -> Data:
    """The first row of every text is a thousand times the others in two columns."""
    data = classes(512, 10, 3, seed=2)
    x = data.x.float()
    x[::128, 3:5] += 3000
    return Data(x, data.y, data.options)


def on_a_line() -> Data:
    """Ten classes whose means lie on one line, far from the origin: the rank is 1."""
    generator = torch.Generator().manual_seed(3)
    rows, dim = 1000, 16
    y = torch.arange(rows) % 10
    noise = correlated(rows // 10, dim, generator).repeat_interleave(10, 0)
    direction = torch.randint(-8, 8, (dim,), generator=generator).double()
    # The same noise in each class on a grid of 2^-20: the means lie on the line without any rounding.
    return Data((noise * 2**20).round() / 2**20 + y[:, None] * direction + 1000, y, {"num_classes": 10}, rank=1)


def one_row_class() -> Data:
    """One class has a single row, the last, and another comes in the last tenth alone."""
    data = classes(400, 8, 2, seed=4)
    y = data.y.clone()
    y[360:399:2], y[-1] = 2, 3
    x = data.x + torch.eye(8, dtype=torch.float64)[y] * 3
    return Data(x, y, {"num_classes": 4})


def mean_in_the_span() -> Data:
    """The overall mean lies along the difference of the class means: no map without an offset is cheap."""
    generator = torch.Generator().manual_seed(5)
    y = (torch.arange(500) % 2).long()
    direction = torch.randn(8, generator=generator, dtype=torch.float64)
    x = correlated(500, 8, generator) + (50 + y[:, None]) * direction
    return Data(x, y, {"num_classes": 2})


def offset() -> Data:
    """Means ten thousand standard deviations from the origin."""
    data = classes(800, 12, 3, seed=6, noise=0.3)
    return Data(data.x + 1e4, data.y, data.options)


def degenerate_columns() -> Data:
    """A constant column, a repeated one, and one that is the sum of two."""
    data = classes(500, 9, 3, seed=7)
    x = data.x.clone()
    x[:, 2], x[:, 5], x[:, 7] = 7.25, x[:, 4], x[:, 0] + x[:, 1]
    return Data(x, data.y, data.options)


def few_rows() -> Data:
    """Fewer rows than dimensions."""
    return classes(20, 40, 3, seed=8)


def more_classes_than_dimensions() -> Data:
    data = classes(600, 4, 7, seed=9)
    return Data(data.x, data.y, data.options, rank=4)


def rare_class() -> Data:
    """A class of 1e-5 of all rows."""
    generator = torch.Generator().manual_seed(10)
    rows = 200_000
    y = torch.zeros(rows, dtype=torch.int64)
    y[[77, 123_456]] = 1
    x = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    x[y == 1] += 8
    return Data(x, y, {"num_classes": 2})


def ill_conditioned() -> Data:
    return classes(2000, 24, 4, condition=1e8, seed=11)


def weighted() -> Data:
    data = classes(700, 9, 3, seed=12)
    generator = torch.Generator().manual_seed(12)
    return Data(data.x, data.y, data.options, weight=torch.rand(700, generator=generator, dtype=torch.float64).square())


def masked_and_ignored() -> Data:
    data = classes(700, 9, 3, seed=13)
    y = torch.where(torch.arange(700) % 7 == 3, -100, data.y)
    return Data(data.x, y, data.options, mask=torch.arange(700) % 5 != 0)


HARD: dict[str, Callable[[], Data]] = {
    "LayerNorm": layer_norm,
    "huge first token": huge_first_token,
    "classes on a line": on_a_line,
    "class of one row": one_row_class,
    "mean in the span": mean_in_the_span,
    "offset 1e4": offset,
    "degenerate columns": degenerate_columns,
    "fewer rows than dimensions": few_rows,
    "more classes than dimensions": more_classes_than_dimensions,
    "class share 1e-5": rare_class,
    "condition 1e8": ill_conditioned,
    "weighted": weighted,
    "masked and ignored": masked_and_ignored,
    "1 target": lambda: targets(600, 8, 1),
    "3 targets": lambda: targets(600, 8, 3),
}
