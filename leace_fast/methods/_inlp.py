"""INLP: null spaces of linear classifiers, one after another; least squares on the moments, others on the rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from ..erasers import Eraser
from ..fitting import Shrinkage, absent_of, canonical_columns, check_count, check_rank, fitted, warn_of, whitening_of
from ..statistics import Moments
from ._inlp_rows import null_spaces

Batches = Iterable[tuple[Tensor, Tensor]]


def inlp(
    data: Moments | Batches,
    *,
    classifier: Literal["least squares", "logistic", "svm"] | None = None,
    rank: int | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    shrinkage: Shrinkage = "auto",
    ridge: float | None = None,
    seed: int = 0,
) -> Eraser:
    """Return the orthogonal projection about the mean off the weights of classifiers fitted one after another.

    Each classifier is fitted on what the ones before it left; all of their weight vectors W are dropped at the end,
    `x - W (W' W)^-1 W' (x - mean)`. On the moments the classifiers are those of least squares, `w = Sxx^-1 Sxz`
    within the null space so far; linear discriminant analysis has the same span, and so gives the same eraser.

    Args:
        data: statistics of (x, labels); or batches (x, y) of integer labels that can be gone over again and again,
            for classifiers that moments do not give.
        classifier: least squares on moments; "logistic" (the default) or "svm" on batches.
        rank: stop once so many directions are dropped.
        tolerance: on moments, stop once no direction explains more than this share of a label's variance; on
            batches, once accuracy is less than this above that of the most frequent class.
        max_iterations: most classifiers.
        shrinkage, ridge: as in `leace`, on moments.
        seed: of the order of rows, on batches.

    Raises:
        TypeError: batches can be gone over once only, or hold no tensors.
        ValueError: the classifier does not fit the data, an option is out of range, or as in `leace`.
        ImportError: batches need scikit-learn.

    Warns:
        UserWarning: a class has no rows.

    Guarantees: what a classifier explains is below a bound.

    Source: Ravfogel et al. 2020, https://arxiv.org/abs/2004.07667, algorithm 1.

    >>> y = torch.arange(3000) % 2
    >>> x = torch.randn(3000, 6, dtype=torch.float64) * torch.arange(1, 7) + y[:, None]
    >>> eraser = inlp(Moments(6, 2).update(x, y))
    >>> eraser.rank > 1  # where one step of mean projection is enough
    True
    """
    check_rank(rank)
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}, expected a number >= 0")
    check_count("max_iterations", max_iterations)
    if not isinstance(data, Moments):
        if classifier not in (None, "logistic", "svm"):
            raise ValueError(f"classifier is {classifier!r}, expected 'logistic' or 'svm': moments give least squares")
        return null_spaces(
            data, classifier or "logistic", rank=rank, tolerance=tolerance, max_iterations=max_iterations, seed=seed
        )
    if classifier not in (None, "least squares"):
        raise ValueError(f"classifier is {classifier!r}, expected 'least squares': others need batches of rows")
    return _on_moments(data, rank, tolerance, max_iterations, shrinkage, ridge)


def _on_moments(
    moments: Moments, rank: int | None, tolerance: float, iterations: int, shrinkage: Shrinkage, ridge: float | None
) -> Eraser:
    """Return the eraser, all classifiers solved by triangles of one factorisation.

    A reader is `w = W' v` with W the whitening. That it is orthogonal to what was dropped, `B' w = 0`, says that v is
    orthogonal to `W B`; the best such v is the concept's column less its part in the span of those.
    """
    absent = absent_of(moments)
    white = whitening_of(moments, shrinkage, ridge)
    signal = white.whiten(torch.where(white.constant[:, None], 0.0, canonical_columns(moments)))
    dropped, closed = (signal.new_zeros(moments.dim, 0) for _ in range(2))
    for _ in range(iterations):
        left_in = _off(signal, closed)
        vectors, values, _ = torch.linalg.svd(left_in, full_matrices=False)
        # A singular value is the canonical correlation of its direction with the labels.
        vectors = vectors[:, values.square() > max(tolerance, 1e-24)]
        room = min(rank or moments.dim, moments.dim) - dropped.shape[1]
        new = torch.linalg.qr(_off(white.readers(vectors).mT, dropped))[0][:, :room]
        if not new.shape[1]:
            break
        dropped = torch.cat([dropped, _off(new, dropped)], 1)
        closed = torch.cat([closed, torch.linalg.qr(_off(white.whiten(new), closed))[0]], 1)
    share = float(torch.linalg.svdvals(_off(signal, closed))[0]) ** 2
    warn_of(absent)
    left = f"a linear classifier still explains {share:.1e} of a label's variance"
    return fitted(
        "inlp",
        moments,
        dropped,
        dropped.mT,
        moments.mean,
        not_erased=[*absent, *([left] if share > 1e-20 else [])],
        white=white,
    )


def _off(columns: Tensor, basis: Tensor) -> Tensor:
    """Return columns less their part in an orthonormal basis, to rounding: taken off twice."""
    once = columns - basis @ (basis.mT @ columns)
    return once - basis @ (basis.mT @ once)
