"""What the transformers share: checks, labels of any type, streams, and scikit-learn's protocol."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data
from torch import Tensor

from ..erasers import Eraser
from ..statistics import Moments

Kind = Literal["auto", "classes", "numbers"]
DTYPES = [np.float64, np.float32]


class Concept(NamedTuple):
    """The labels or numbers that are to be taken out.

    Attributes:
        targets: (n,) int64 codes of the classes, or (n,) or (n, t) float64 numbers.
        classes: the classes, sorted, or None for numbers.
    """

    targets: NDArray[Any]
    classes: NDArray[Any] | None

    @classmethod
    def like(cls, moments: Moments, classes: NDArray[Any] | None) -> Concept:
        """Return the concept of no rows, of the kind that some statistics hold."""
        width = moments.target_dim or 1
        return cls(np.empty((0, width) if width > 1 else 0), classes)

    def moments_of(self, rows: Tensor, before: Moments | None = None) -> Moments:
        """Return the statistics of rows with these targets, or those before with the rows added."""
        dim = rows.shape[1]
        if before is None and self.classes is not None:
            before = Moments(dim, len(self.classes))
        elif before is None:
            before = Moments(dim, target_dim=1 if self.targets.ndim == 1 else self.targets.shape[1])
        return before.update(rows, torch.from_numpy(self.targets))


class ConceptTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Takes y, or else the metadata `concept`, out of X.

    In a pipeline whose y is the task, ask for `concept` by metadata routing:
    `LeaceTransformer().set_fit_request(concept=True)`.
    """

    kind: Kind = "auto"

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return X (n, d) without the concept, float64 or float32 as X is."""
        check_is_fitted(self)
        return self._eraser()(self._rows(X, reset=False)).numpy()

    def _eraser(self) -> Eraser:
        """Return the map that `transform` applies."""
        return self.eraser_  # type: ignore[attr-defined]

    def _rows(self, X: Any, reset: bool) -> Tensor:
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
    _fitted: Eraser | None

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, concept: ArrayLike | None = None):
        """Fit the eraser of a concept and return self.

        Args:
            X: (n, d) real numbers, float64 or float32.
            y: (n,) classes of any type or real numbers, or (n, t) several numbers or indicators for each row.
            concept: in place of y, where y is something else.

        Raises:
            ValueError: no concept is given, it has one class only, or a number is not finite.
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
        """
        first = not hasattr(self, "moments_")
        rows = self._rows(X, reset=first)
        like = None if first else Concept.like(self.moments_, self.classes_)
        found = self._concept(rows, y, concept, classes, like)
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

    def _keep(self, moments: Moments, concept: Concept, eraser: Eraser | None):
        self.moments_, self.classes_, self._fitted = moments, concept.classes, eraser
        self.n_samples_seen_ = moments.count
        return self


def read_concept(
    name: str, given: Any, kind: Kind, rows: Tensor, classes: Any = None, like: Concept | None = None
) -> Concept:
    """Return the concept in an array of labels or numbers, one for each row, of the kind and classes of another.

    Raises:
        ValueError: kind is unknown, there are not as many as rows, a number is not finite, or there is one class only.
    """
    if kind not in ("auto", "classes", "numbers"):
        raise ValueError(f"kind is {kind!r}, expected 'auto', 'classes' or 'numbers'")
    z = check_array(given, ensure_2d=False, dtype=None, input_name=name)  # type: ignore[arg-type]
    z = z[:, 0] if z.ndim == 2 and z.shape[1] == 1 else z
    check_consistent_length(rows, z)
    if like is not None:
        kind = "numbers" if like.classes is None else "classes"
    elif kind == "auto":
        kind = "classes" if type_of_target(z, input_name=name) in ("binary", "multiclass") else "numbers"
    if kind == "numbers":
        if like is not None and z.shape[1:] != like.targets.shape[1:]:
            raise ValueError(
                f"{name} has shape {z.shape}, expected {('n', *like.targets.shape[1:])} as in earlier calls"
            )
        return Concept(np.asarray(z, dtype=np.float64), None)
    known = np.unique(z if classes is None else np.asarray(classes)) if like is None else like.classes
    assert known is not None
    if len(known) < 2:
        raise ValueError(
            f"{name} has 1 class, {known.tolist()[0]!r}, in n_samples={len(z)}: expected at least two, of which some "
            "may come later where partial_fit was told all, as classes="
        )
    return Concept(_codes(z, known, name), known)


def check_told_apart(moments: Moments, classes: NDArray[Any] | None) -> None:
    """Raise NotFittedError if rows of one class only have come."""
    counts = moments.class_counts
    if classes is not None and int((counts > 0).sum()) < 2:
        raise NotFittedError(
            f"of {classes.tolist()} only {classes[counts.argmax()].tolist()!r} has come so far: call partial_fit with "
            "rows of a second class first"
        )


def _codes(z: NDArray[Any], classes: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return the position of each label among the classes, which are sorted."""
    places = np.searchsorted(classes, z).clip(max=len(classes) - 1)
    unknown = np.unique(z[classes[places] != z])
    if len(unknown):
        raise ValueError(
            f"{name} holds the class {unknown.tolist()[0]!r}, expected one of {classes.tolist()}: name all classes in "
            "the first call, as by partial_fit(X, y, classes=...)"
        )
    return places.astype(np.int64)
