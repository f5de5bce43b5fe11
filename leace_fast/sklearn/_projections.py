"""The transformers of methods that need statistics alone and take the concept out of X."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from ..erasers import Eraser
from ..fitting import Shrinkage
from ..methods import difference_in_means, inlp, leace, mean_projection, orth
from ..statistics import Moments
from ._base import Kind, StreamingTransformer


def _keeps_something(transformer: ScaledTransformer) -> bool:
    if transformer.strength == 1:
        raise AttributeError("what was erased cannot be brought back: an inverse exists only where strength is not 1")
    return True


class ScaledTransformer(StreamingTransformer):
    """A transformer of a strength: 1 erases, 2 reflects, 0 changes nothing; all but 1 can be undone."""

    strength: float

    def _eraser(self) -> Eraser:
        return self.eraser_.scaled(self.strength)

    @available_if(_keeps_something)
    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return the X (n, d) that `transform` would turn into this one; it exists where `strength` is not 1."""
        check_is_fitted(self)
        # (I - s E) (I - t E) = I for a projection E and t = s / (s - 1).
        undo = self.eraser_.scaled(self.strength / (self.strength - 1))
        return undo(self._rows(X, reset=False)).numpy()


class LeaceTransformer(ScaledTransformer):
    """Takes out of X, with the least change, all that a linear model could tell of y.

    Args:
        rank: erase only so many directions, those of the largest canonical correlation.
        affine: keep the mean of X.
        shrinkage: of the correlation matrix: "auto", True, False or a weight from 0 to 1.
        kind: "classes" or "numbers", what y holds; "auto" takes whole numbers for classes, as scikit-learn does.
        strength: 1 erases, 2 reflects, 0 changes nothing.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, theorem 4.3.

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> erased = LeaceTransformer().fit_transform(X, y)
    >>> float(LogisticRegression().fit(erased, y).score(erased, y)) < 0.35
    True
    """

    def __init__(
        self,
        *,
        rank: int | None = None,
        affine: bool = True,
        shrinkage: Shrinkage = "auto",
        kind: Kind = "auto",
        strength: float = 1.0,
    ) -> None:
        self.rank = rank
        self.affine = affine
        self.shrinkage: Shrinkage = shrinkage
        self.kind = kind
        self.strength = strength

    def _fit_eraser(self, moments: Moments) -> Eraser:
        return leace(moments, rank=self.rank, affine=self.affine, shrinkage=self.shrinkage)


class OrthTransformer(ScaledTransformer):
    """Drops from X the directions in which it covaries with y: centred spectral attribute removal.

    Args:
        rank: drop only so many, those of the largest singular values.
        kind, strength: as in `LeaceTransformer`.

    Source: Shao, Ziser and Cohen 2023, https://arxiv.org/abs/2203.07893, section 3.

    >>> import numpy as np
    >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    >>> OrthTransformer().fit(X, y).eraser_.rank
    2
    """

    def __init__(self, *, rank: int | None = None, kind: Kind = "auto", strength: float = 1.0) -> None:
        self.rank = rank
        self.kind = kind
        self.strength = strength

    def _fit_eraser(self, moments: Moments) -> Eraser:
        return orth(moments, rank=self.rank)


class MeanProjectionTransformer(ScaledTransformer):
    """Drops from X the differences between class means, without an offset.

    Args:
        rank: drop only so many directions, those along which the class means spread most.
        strength: as in `LeaceTransformer`.

    Source: Haghighatkhah et al. 2022, https://arxiv.org/abs/2212.04273, section 3.

    >>> import numpy as np
    >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    >>> MeanProjectionTransformer().fit(X, y).eraser_.rank
    2
    """

    kind = "classes"

    def __init__(self, *, rank: int | None = None, strength: float = 1.0) -> None:
        self.rank = rank
        self.strength = strength

    def _fit_eraser(self, moments: Moments) -> Eraser:
        return mean_projection(moments, rank=self.rank)


class DifferenceInMeansTransformer(ScaledTransformer):
    """Drops from X the one direction from the mean of a class to that of another.

    Args:
        positive, negative: positions among the sorted classes of the two.
        strength: as in `LeaceTransformer`.

    Source: Arditi et al. 2024, https://arxiv.org/abs/2406.11717, equations 2 and 4.

    >>> import numpy as np
    >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.array(["no", "yes"])[np.arange(60) % 2]
    >>> DifferenceInMeansTransformer().fit(X, y).eraser_.rank
    1
    """

    kind = "classes"

    def __init__(self, *, positive: int = 1, negative: int = 0, strength: float = 1.0) -> None:
        self.positive = positive
        self.negative = negative
        self.strength = strength

    def _fit_eraser(self, moments: Moments) -> Eraser:
        return difference_in_means(moments, self.positive, self.negative)


class InlpTransformer(ScaledTransformer):
    """Drops from X the weights of least-squares classifiers, fitted one after another on what the others left.

    Args:
        rank: stop once so many directions are dropped.
        tolerance: stop once no direction explains more than this share of a label's variance.
        max_iterations: most classifiers.
        shrinkage, kind, strength: as in `LeaceTransformer`.

    Source: Ravfogel et al. 2020, https://arxiv.org/abs/2004.07667, algorithm 1.

    >>> import numpy as np
    >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
    >>> 1 <= InlpTransformer(tolerance=0.01).fit(X + y[:, None], y).eraser_.rank <= 4
    True
    """

    def __init__(
        self,
        *,
        rank: int | None = None,
        tolerance: float = 1e-3,
        max_iterations: int = 100,
        shrinkage: Shrinkage = "auto",
        kind: Kind = "auto",
        strength: float = 1.0,
    ) -> None:
        self.rank = rank
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.shrinkage: Shrinkage = shrinkage
        self.kind = kind
        self.strength = strength

    def _fit_eraser(self, moments: Moments) -> Eraser:
        return inlp(
            moments,
            rank=self.rank,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            shrinkage=self.shrinkage,
        )
