"""Estimators for scikit-learn: transformers that take the concept y out of X."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data
from torch import Tensor

from .eraser import Eraser
from .methods import leace, orth
from .methods._whitening import Shrinkage
from .moments import Moments

Kind = Literal["auto", "classes", "numbers"]
DTYPES = [np.float64, np.float32]


def _keeps_something(transformer: ConceptTransformer) -> bool:
    if transformer.strength == 1:
        raise AttributeError("what was erased cannot be brought back: an inverse exists only where strength is not 1")
    return True


class ConceptTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """What the transformers share: y, or else the metadata `concept`, is what they take out of X.

    In a pipeline whose y is the task, ask for `concept` by metadata routing:
    `LeaceTransformer().set_fit_request(concept=True)`.
    """

    kind: Kind
    strength: float
    eraser_: Eraser
    moments_: Moments

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, concept: ArrayLike | None = None):
        """Fit the eraser of a concept and return self.

        Args:
            X: (n, d) real numbers, float64 or float32.
            y: (n,) classes of any type or real numbers, or (n, t) several numbers or indicators for each row.
            concept: in place of y, where y is something else.

        Raises:
            ValueError: no concept is given, it has one class only, or a number is not finite.
        """
        return self._update(X, y, concept, None, first=True)

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        concept: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ):
        """Add rows, fit again and return self; a call that fails changes nothing.

        Args:
            X: (n, d) real numbers, float64 or float32.
            y: as in `fit`, and of the kind of the first call.
            concept: in place of y.
            classes: all classes that will come, in the first call; by default those of its rows.

        Raises:
            ValueError: as in `fit`, or a class that the first call did not announce.
        """
        return self._update(X, y, concept, classes, first=not hasattr(self, "moments_"))

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return X (n, d) without the concept, float64 or float32 as X is."""
        return self._apply(X, self.strength)

    @available_if(_keeps_something)
    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return the X (n, d) that `transform` would turn into this one; it exists where `strength` is not 1."""
        # (I - s E) (I - t E) = I for a projection E and t = s / (s - 1).
        return self._apply(X, self.strength / (self.strength - 1))

    def _fit_eraser(self, moments: Moments) -> Eraser:
        """Return the eraser of a method from the statistics of (X, y)."""
        raise NotImplementedError

    def _apply(self, X: ArrayLike, strength: float) -> NDArray[Any]:
        check_is_fitted(self)
        return self.eraser_.scaled(strength)(self._rows(X, reset=False)).numpy()

    def _rows(self, X: Any, reset: bool) -> Tensor:
        checked: Any = validate_data(self, X, dtype=DTYPES, reset=reset)
        # A copy: arrays may be read-only, of any strides, and of a byte order that torch does not take.
        return torch.from_numpy(np.array(checked, dtype=checked.dtype.newbyteorder("="), order="C"))

    def _is_of_classes(self, z: NDArray[Any], name: str) -> bool:
        if self.kind not in ("auto", "classes", "numbers"):
            raise ValueError(f"kind is {self.kind!r}, expected 'auto', 'classes' or 'numbers'")
        if self.kind == "auto":
            return type_of_target(z, input_name=name) in ("binary", "multiclass")
        return self.kind == "classes"

    def _update(self, X: Any, y: Any, concept: Any, classes: Any, first: bool):
        if concept is None and y is None:
            raise ValueError(
                f"This {type(self).__name__} requires y to be passed, but the target y is None: y, or else `concept`, "
                "is what is taken out of X"
            )
        name, given = ("y", y) if concept is None else ("concept", concept)
        rows = self._rows(X, reset=first)
        z = check_array(given, ensure_2d=False, dtype=None, input_name=name)  # type: ignore[arg-type]
        z = z[:, 0] if z.ndim == 2 and z.shape[1] == 1 else z
        check_consistent_length(rows, z)
        known = None if first else getattr(self, "classes_", None)
        if first and self._is_of_classes(z, name):
            known = np.unique(z if classes is None else np.asarray(classes))
        if first:
            if known is not None and len(known) < 2:
                raise ValueError(
                    f"{name} has 1 class, {known.tolist()[0]!r}, in n_samples={len(z)}: expected at least two"
                )
            width = 1 if z.ndim == 1 else z.shape[1]
            dim = rows.shape[1]
            moments = Moments(dim, target_dim=width) if known is None else Moments(dim, len(known))
        else:
            moments = self.moments_.copy()
        targets = np.asarray(z, dtype=np.float64) if known is None else _codes(z, known, name)
        moments.update(rows, torch.from_numpy(targets))
        eraser = self._fit_eraser(moments)
        self.moments_, self.eraser_, self.n_samples_seen_ = moments, eraser, moments.count
        if known is not None:
            self.classes_ = known
        elif first:
            self.__dict__.pop("classes_", None)
        return self

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class LeaceTransformer(ConceptTransformer):
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
    >>> from sklearn.pipeline import make_pipeline
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


class OrthTransformer(ConceptTransformer):
    """Drops from X the directions in which it covaries with y: centred spectral attribute removal.

    Args:
        rank: drop only so many, those of the largest singular values.
        kind: "classes" or "numbers", what y holds; "auto" takes whole numbers for classes, as scikit-learn does.
        strength: 1 erases, 2 reflects, 0 changes nothing.

    Source: Shao, Ziser and Cohen 2023, https://arxiv.org/abs/2203.07893, section 3.

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


ESTIMATORS = (LeaceTransformer, OrthTransformer)


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
