"""R-LACE: the projection of a given rank against which the best linear classifier does worst, by a game on the rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..erasers import Eraser, Report
from ..fitting import RowStream, Summary, check_count, check_rank, constant_columns

MOMENTUM = (0.9, 0.999)  # of Adam
REACH_MOMENTUM = 0.95  # the gradient by P is small and noisy: it is taken over some twenty batches
TINY_WEIGHT = 1e-6  # eigenvalues of the relaxed projection below it are dropped


def rlace(
    batches: Iterable[tuple[Tensor, Tensor]],
    rank: int = 1,
    *,
    steps: int = 1000,
    classifier_rate: float = 0.02,
    projection_rate: float = 1.0,
) -> Eraser:
    """Return the projection, orthogonal in standardised columns, that makes the best logistic classifier worst.

    `max over P, min over (W, b) of the logistic loss of ((I - P) D^-1 (x - m)) W' + b`: m the mean, D the standard
    deviations of the columns, so that a massive one counts like any other, P in the Fantope (eigenvalues from 0 to 1
    that sum to at most the rank). In the columns of x it is the oblique projection `x - D B B' D^-1 (x - m)`, B
    orthonormal.

    From as many directions as the class means span (mostly classes - 1) on, equal class means are the optimum: no
    classifier is then better than the constant. That closed form is returned, which is `orth` in these columns. Below,
    alternating gradient steps on one batch each start from its leading directions, and the mean of P over the last half
    of the steps is rounded to its leading eigenvectors. P is kept as `V diag(w) V'`: a step adds a matrix of rank 2k,
    so that the projection onto the Fantope takes the eigenvectors of a small core.

    Args:
        batches: (x, y) with integer labels, -100 for rows to leave out; gone over again and again.
        rank: dimension of what is dropped, at most that of what the class means span.
        steps: batches used in all, below full rank.
        classifier_rate: step of the classifier (Adam), in units of the columns' deviations.
        projection_rate: first step of the projection, in units of the spread of the class means; it falls as 1/sqrt.

    Raises:
        TypeError: batches can be gone over once only, or hold no tensors.
        ValueError: rank or another option is out of range, or there are rows of one class only.

    Warns:
        UserWarning: a column varies by less than rounding, and is left as it is.

    Guarantees: class means equal at full rank, nothing below; mean kept.

    Source: Ravfogel et al. 2022, https://arxiv.org/abs/2201.12091, equation 6 and algorithm 1, of standardised columns;
        the optimum at full rank: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, theorem 3.1.

    >>> y = torch.arange(2000) % 2
    >>> x = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0))
    >>> x[:, 2] += 4 * y
    >>> eraser = rlace(list(zip(x.split(250), y.split(250))), steps=200)
    >>> bool(eraser.left[2].abs() > 0.98)
    True
    """
    check_rank(rank)
    for name, value in (("classifier_rate", classifier_rate), ("projection_rate", projection_rate)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}, expected a number above 0")
    check_count("steps", steps, least=2)
    rows = RowStream(batches)
    summary = rows.summary()
    dim = len(summary.mean)
    if rank > dim:
        raise ValueError(f"rank is {rank}, expected at most the width {dim}")
    classes = (summary.counts > 0).nonzero().flatten()
    scale = _scale(summary)
    vectors, values = _signal(summary, classes, scale)
    full = len(values)
    if rank > full:
        raise ValueError(f"the class means give {full} directions to drop, {rank} were asked for: ask for fewer")
    if rank == full:
        basis, not_erased = vectors, ()
    else:
        game = _Game(summary, classes, scale, float(values.norm()))
        basis = game.played(rows, vectors[:, :rank], steps, classifier_rate, projection_rate)
        not_erased = (f"{full - rank} of {full} directions: rank={rank} was asked for", "a game gives no guarantee")
    left, right = basis * torch.where(scale.isinf(), 0.0, scale)[:, None], (basis / scale[:, None]).mT
    change = sum(float(((x - summary.mean) @ right.mT @ left.mT).square().sum()) for x, _ in rows) / summary.rows
    report = Report("rlace", dim, rank, summary.rows, change, not_erased=(*not_erased, *summary.hidden()))
    return Eraser(left, right, summary.mean, method="rlace", report=report)


def _scale(summary: Summary) -> Tensor:
    """Return the deviation of each column (d,), infinite for a constant one, which is left alone."""
    constant = constant_columns(summary.deviation, summary.mean)
    return torch.where(constant, torch.inf, summary.deviation)


def _signal(summary: Summary, classes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis (d, r) of the differences of class means in deviations, and their spread (r,) on it.

    The largest come first; each class counts by its share.
    """
    shares = (summary.counts[classes] / summary.rows).to(summary.mean)
    differences = ((summary.class_means[classes] - summary.mean) / scale * shares.sqrt()[:, None]).mT
    vectors, values, _ = torch.linalg.svd(differences, full_matrices=False)
    kept = values > 1e-9 * values[:1]
    return vectors[:, kept], values[kept]


@dataclass(frozen=True)
class _Game:
    """The game of a projection against a classifier, on rows about their mean in units of `scale` (d,).

    `classes` are those that have rows, and `spread` is the size of what their means differ by.
    """

    summary: Summary
    classes: Tensor
    scale: Tensor
    spread: float

    def played(
        self, rows: RowStream, start: Tensor, steps: int, classifier_rate: float, projection_rate: float
    ) -> Tensor:
        """Return the directions (d, rank) that so many batches lead to from those of the start (d, rank)."""
        (dim, rank), count = start.shape, len(self.classes)
        position = torch.full((len(self.summary.counts),), -1).scatter(0, self.classes, torch.arange(count))
        projection = LowRank(start, start.new_ones(rank))
        average, reach = LowRank.zero(dim, start), start.new_zeros(dim, count)
        classifier = _Classifier(self.summary, self.classes, classifier_rate)
        for step, (x, y) in zip(range(steps), _again(rows), strict=False):
            x = (x - self.summary.mean) / self.scale
            labels = position.to(y.device)[y]
            weight = classifier.weight
            # The gradient by P is -(x' G W + its transpose) / 2, with G that of the loss by the logits.
            reach = reach.lerp(x.mT @ classifier.step(projection.off(x), labels), 1 - REACH_MOMENTUM)
            rate = projection_rate / (1 + step / 50) ** 0.5
            length = self.spread * float(torch.linalg.matrix_norm(weight))
            if length > 0:
                projection = projection.ascended(reach, weight, rate / length).onto_fantope(rank)
            if step >= steps // 2:
                average = average.mixed(projection, 1 / (step - steps // 2 + 1), 4 * rank + 2 * count)
        basis = average.basis[:, :rank]
        if basis.shape[1] < rank:
            found = basis.shape[1]
            raise ValueError(f"the game found {found} directions to drop, {rank} were asked for: ask for fewer")
        return basis


def _again(rows: RowStream) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from rows


class _Classifier:
    """A logistic regression with one row of weights a class, trained by Adam."""

    def __init__(self, summary: Summary, classes: Tensor, rate: float) -> None:
        self.rate, self.steps = rate, 0
        self.weight = summary.mean.new_zeros(len(classes), len(summary.mean))
        self.bias = (summary.counts[classes] / summary.rows).log().to(self.weight)
        self._first, self._second = (self.weight.new_zeros(len(classes), len(summary.mean) + 1) for _ in range(2))

    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        """Take a step on one batch and return the gradient of the mean loss by the logits before it (n, k)."""
        shares = torch.softmax(x @ self.weight.mT + self.bias, 1)
        gradient = (shares - torch.nn.functional.one_hot(labels, len(self.bias))) / len(x)
        slope = torch.cat([gradient.mT @ x, gradient.sum(0)[:, None]], 1)
        self.steps += 1
        self._first.lerp_(slope, 1 - MOMENTUM[0])
        self._second.lerp_(slope.square(), 1 - MOMENTUM[1])
        first, second = self._first / (1 - MOMENTUM[0] ** self.steps), self._second / (1 - MOMENTUM[1] ** self.steps)
        move = self.rate * first / (second.sqrt() + 1e-12)
        self.weight, self.bias = self.weight - move[:, :-1], self.bias - move[:, -1]
        return gradient


@dataclass(frozen=True)
class LowRank:
    """A symmetric matrix `V diag(w) V'`: basis V (d, r) orthonormal, weights w (r,) in falling order."""

    basis: Tensor
    weights: Tensor

    @classmethod
    def zero(cls, dim: int, like: Tensor) -> LowRank:
        """Return the matrix of nothing."""
        return cls(like.new_zeros(dim, 0), like.new_zeros(0))

    @classmethod
    def of(cls, columns: Tensor, core: Tensor) -> LowRank:
        """Return `columns core columns'` (d, m), (m, m) symmetric, by the eigenvectors of a matrix of size m."""
        orthonormal, triangle = torch.linalg.qr(columns)
        values, vectors = torch.linalg.eigh(triangle @ core @ triangle.mT)
        return cls(orthonormal @ vectors.flip(1), values.flip(0))

    def off(self, x: Tensor) -> Tensor:
        """Return `x (I - V diag(w) V')`."""
        return x - ((x @ self.basis) * self.weights) @ self.basis.mT

    def ascended(self, reach: Tensor, weight: Tensor, rate: float) -> LowRank:
        """Return the matrix less `rate` times `reach weight` made symmetric."""
        k = reach.shape[1]
        core = torch.block_diag(self.weights.diag(), reach.new_zeros(2 * k, 2 * k))
        r = len(self.weights)
        eye = -0.5 * rate * torch.eye(k, dtype=reach.dtype, device=reach.device)
        core[r : r + k, r + k :], core[r + k :, r : r + k] = eye, eye
        return LowRank.of(torch.cat([self.basis, reach, weight.mT], 1), core)

    def onto_fantope(self, rank: int) -> LowRank:
        """Return the nearest matrix with eigenvalues from 0 to 1 whose sum is at most `rank`.

        Directions with no weight stay without: the bound on the sum is one from above, so that none has to be filled.
        """
        weights = self.weights.clamp(0, 1)
        if float(weights.sum()) > rank:
            low, high = 0.0, float(self.weights.max())
            for _ in range(60):  # bisection, to the last bit
                middle = (low + high) / 2
                if float((self.weights - middle).clamp(0, 1).sum()) > rank:
                    low = middle
                else:
                    high = middle
            weights = (self.weights - high).clamp(0, 1)
        kept = weights > TINY_WEIGHT
        return LowRank(self.basis[:, kept], weights[kept])

    def mixed(self, other: LowRank, share: float, most: int) -> LowRank:
        """Return the mean of two, of which `other` counts for a share, cut to its `most` leading directions."""
        columns = torch.cat([self.basis, other.basis], 1)
        core = torch.block_diag(((1 - share) * self.weights).diag(), (share * other.weights).diag())
        mixed = LowRank.of(columns, core)
        return LowRank(mixed.basis[:, :most], mixed.weights[:most])
