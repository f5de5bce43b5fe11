"""What the transformers share: checks of the rows, streams, and scikit-learn's protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .._ops import check_plain
from ..erasers import Eraser
from ..statistics import Moments
from ._concept import Concept, Kind, check_told_apart, read_concept

DTYPES = [np.float64, np.float32]


class ConceptTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Takes y, or else the metadata `concept`, out of X.

    In a pipeline whose y is the task, ask for `concept` by metadata routing:
    `LeaceTransformer().set_fit_request(concept=True)`.
    """

    kind: Kind = "auto"

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return X (n, d) without the concept, float64 or float32 as X is.

        Args:
            X: (n, d) real numbers.

        Raises:
            NotFittedError: nothing was fitted, or rows of one class only have come.
            ValueError: X is not of the width that was fitted, or a number is not finite.

        Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 1.

        >>> from leace_fast.sklearn import LeaceTransformer
        >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
        >>> erased = LeaceTransformer().fit(X, y).transform(X)
        >>> np.allclose(erased[y == 0].mean(0), erased[y == 1].mean(0))
        True
        """
        check_is_fitted(self)
        return self._eraser()(self._rows(X, reset=False)).numpy()

    def _eraser(self) -> Eraser:
        """Return the map that `transform` applies."""
        return self.eraser_  # type: ignore[attr-defined]

    def _rows(self, X: Any, reset: bool) -> Tensor:
        check_plain(X, "X")
        checked: Any = validate_data(self, X, dtype=DTYPES, reset=reset)
        # A copy: arrays may be read-only, of any strides, and of a byte order that torch does not take.
        return torch.from_numpy(np.array(checked, dtype=checked.dtype.newbyteorder("="), order="C"))

    def _concept(self, rows: Tensor, y: Any, concept: Any, classes: Any = None, like: Concept | None = None) -> Concept:
        """Return the concept of some rows; `like` is that of earlier calls."""
        if concept is None and y is None:
            raise ValueError(
                f"This {type(self).__name__} requires y to be passed, but the target y is None: y, or else `concept`, "
                "is what is taken out of X"
            )
        name, given = ("y", y) if concept is None else ("concept", concept)
        return read_concept(name, given, self.kind, rows, classes, like)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class StreamingTransformer(ConceptTransformer):
    """A `ConceptTransformer` whose method needs the statistics of (X, y) alone, which stream.

    Attributes:
        moments_: the statistics of the rows so far.
        classes_: the classes, sorted, or None for numbers.
        n_samples_seen_: number of rows so far.
        eraser_: the eraser of the rows so far.
    """

    moments_: Moments
    classes_: NDArray[Any] | None
    _fitted: Eraser | None

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, concept: ArrayLike | None = None):
        """Fit the eraser of a concept and return self.

        Args:
            X: (n, d) real numbers, float64 or float32.
            y: (n,) classes of any type or real numbers, or (n, t) several numbers or indicators for each row.
            concept: in place of y, where y is something else.

        Raises:
            ValueError: no concept is given, it has one class only, or a number is not finite.

        Source: docs/scikit-learn.md, and the method.

        >>> from leace_fast.sklearn import LeaceTransformer
        >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
        >>> LeaceTransformer().fit(X, y).eraser_.rank
        1
        """
        rows = self._rows(X, reset=True)
        found = self._concept(rows, y, concept)
        moments = found.moments_of(rows)
        return self._keep(moments, found, self._fit_eraser(moments))

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        concept: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ):
        """Add rows and return self; a call that fails changes nothing.

        The eraser is made when it is next asked for, so that a call costs no more than its rows. It needs rows of two
        classes: until they have come, `transform` and `eraser_` raise.

        Args:
            X: (n, d) real numbers, float64 or float32.
            y: as in `fit`, and of the kind of the first call.
            concept: in place of y.
            classes: all classes that will come, in the first call; by default those of its rows.

        Raises:
            ValueError: as in `fit`, or a class that the first call did not announce.

        Source: docs/scikit-learn.md, and Belrose et al. 2023, https://arxiv.org/abs/2306.03819, section 4.

        >>> from leace_fast.sklearn import LeaceTransformer
        >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
        >>> stream = LeaceTransformer().partial_fit(X[:30], y[:30], classes=[0, 1]).partial_fit(X[30:], y[30:])
        >>> stream.n_samples_seen_, stream.eraser_.rank
        (60, 1)
        """
        first = not hasattr(self, "moments_")
        rows = self._rows(X, reset=first)
        like = None if first else Concept.like(self.moments_, self.classes_)
        found = self._concept(rows, y, concept, classes, like)
        self._fitted = None  # first: an eraser of fewer rows must not outlive a call that is interrupted
        return self._keep(found.moments_of(rows, None if first else self.moments_), found, None)

    @property
    def eraser_(self) -> Eraser:
        """The eraser of the rows so far.

        Raises:
            NotFittedError: there are no rows, or rows of one class only.
            ValueError: as the method does.
        """
        check_is_fitted(self, "moments_")
        if self._fitted is None:
            check_told_apart(self.moments_, self.classes_)
            self._fitted = self._fit_eraser(self.moments_)
        return self._fitted

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "moments_")

    def _fit_eraser(self, moments: Moments) -> Eraser:
        """Return the eraser of a method from the statistics of (X, y)."""
        raise NotImplementedError

    def _keep(self, moments: Moments, concept: Concept, eraser: Eraser | None, **more: Any):
        """Set the attributes, and more of them, all at once."""
        moments.count  # noqa: B018  (takes in the rows that wait)
        vars(self).update(moments_=moments, classes_=concept.classes, _fitted=eraser, **more)
        return self

    @property
    def n_samples_seen_(self) -> int:
        """Number of rows so far.

        Raises:
            NotFittedError: nothing was fitted.
        """
        check_is_fitted(self, "moments_")
        return self.moments_.count
