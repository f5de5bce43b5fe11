"""The concept in an array: labels of any type, or numbers, in all rows of a stream alike."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_array, check_consistent_length
from torch import Tensor

from .._ops import check_plain, tensor_from
from ..statistics import Moments

Kind = Literal["auto", "classes", "numbers"]


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
        return before.update(rows, tensor_from(self.targets, "y"))


def read_concept(
    name: str, given: Any, kind: Kind, rows: Tensor, classes: Any = None, like: Concept | None = None
) -> Concept:
    """Return the concept in an array of labels or numbers, one for each row, of the kind and classes of another.

    Raises:
        ValueError: kind is unknown, there are not as many as rows, a number is not finite, or there is one class only.
    """
    if kind not in ("auto", "classes", "numbers"):
        raise ValueError(f"kind is {kind!r}, expected 'auto', 'classes' or 'numbers'")
    check_plain(given, name, dates=True)  # which may name classes
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
