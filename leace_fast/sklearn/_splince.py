"""The transformer that takes a concept out of X and keeps its covariance with a task."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..erasers import Eraser
from ..fitting import Shrinkage
from ..methods import leace, splince
from ..statistics import Moments
from ._base import StreamingTransformer
from ._concept import Concept, Kind, check_told_apart, read_concept


class SplinceTransformer(StreamingTransformer):
    """Takes a concept out of X, with the least change that keeps the covariance of X with a task.

    Args:
        shrinkage, kind: as in `LeaceTransformer`; `kind` is that of the concept.
        task_kind: "classes" or "numbers", what the task holds; "auto" as scikit-learn takes it.
        max_change_ratio: refuse a map that changes X more than so many times as `LeaceTransformer` does.

    Raises:
        ValueError: `fit` meets an option that is out of range, or refuses as `leace_fast.methods.splince` does.

    Source: Holstege, Ravfogel and Wouters 2025, https://arxiv.org/abs/2506.10703, theorem 1.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 4))
    >>> task, concept = X[:, 0], X[:, 0] + X[:, 1] > 0
    >>> kept = SplinceTransformer().fit(X, concept, task=task).transform(X)
    >>> np.allclose(np.cov(kept[:, 0], task)[0, 1], np.cov(X[:, 0], task)[0, 1])
    True
    """

    task_moments_: Moments | None
    task_classes_: NDArray[Any] | None

    def __init__(
        self,
        *,
        shrinkage: Shrinkage = "auto",
        kind: Kind = "auto",
        task_kind: Kind = "auto",
        max_change_ratio: float = 100.0,
    ) -> None:
        self.shrinkage: Shrinkage = shrinkage
        self.kind = kind
        self.task_kind: Kind = task_kind
        self.max_change_ratio = max_change_ratio

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        concept: ArrayLike | None = None,
        task: ArrayLike | None = None,
    ):
        """Fit the eraser and return self.

        Args:
            X: (n, d) real numbers, float64 or float32.
            y: the concept; or the task, where `concept` is given.
            concept: (n,) or (n, t) what is taken out, where y is the task.
            task: (n,) or (n, t) what is kept, where y is the concept; without any task this is `LeaceTransformer`.

        Raises:
            ValueError: no concept is given, two tasks are, the two share a direction, or a number is not finite.

        Source: Holstege, Ravfogel and Wouters 2025, https://arxiv.org/abs/2506.10703, theorem 1.

        >>> import numpy as np
        >>> X, concept = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
        >>> SplinceTransformer().fit(X, concept, task=X[:, 0]).eraser_.method
        'splince'
        """
        rows = self._rows(X, reset=True)
        found, aim = self._concept(rows, y, concept), self._task(rows, _given_task(y, concept, task))
        moments, kept = found.moments_of(rows), None if aim is None else aim.moments_of(rows)
        eraser = self._eraser_of(moments, kept)
        return self._keep_both(moments, found, eraser, kept, aim)

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        concept: ArrayLike | None = None,
        task: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        task_classes: ArrayLike | None = None,
    ):
        """Add rows and return self; a call that fails changes nothing. The eraser is made when it is next asked for.

        Args:
            X, y, concept, task: as in `fit`, and of the kinds of the first call.
            classes: all classes of the concept that will come, in the first call; by default those of its rows.
            task_classes: the same of the task.

        Raises:
            ValueError: as in `fit`, a class that the first call did not announce, or a task where it had none.

        Source: docs/scikit-learn.md, and Holstege, Ravfogel and Wouters 2025, https://arxiv.org/abs/2506.10703,
            theorem 1.

        >>> import numpy as np
        >>> X, concept = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
        >>> stream = SplinceTransformer().partial_fit(X[:30], concept[:30], task=X[:30, 0])
        >>> stream.partial_fit(X[30:], concept[30:], task=X[30:, 0]).n_samples_seen_
        60
        """
        first = not hasattr(self, "moments_")
        rows = self._rows(X, reset=first)
        like = None if first else Concept.like(self.moments_, self.classes_)
        given = _given_task(y, concept, task)
        if not first and (given is None) != (self.task_moments_ is None):
            came, before = ("no task", "one") if given is None else ("a task", "none")
            raise ValueError(f"got {came}, but the first call had {before}: give it with every call or with none")
        aim_like = Concept.like(self.task_moments_, self.task_classes_) if not first and self.task_moments_ else None
        found, aim = self._concept(rows, y, concept, classes, like), self._task(rows, given, task_classes, aim_like)
        # On copies, so that rows come to both or to none, whatever happens in between.
        moments = found.moments_of(rows, None if first else self.moments_.copy())
        before = None if first or self.task_moments_ is None else self.task_moments_.copy()
        kept = None if aim is None else aim.moments_of(rows, before)
        return self._keep_both(moments, found, None, kept, aim)

    def _task(self, rows: Tensor, given: Any, classes: Any = None, like: Concept | None = None) -> Concept | None:
        """Return the task of some rows, if there is one."""
        return None if given is None else read_concept("task", given, self.task_kind, rows, classes, like)

    def _fit_eraser(self, moments: Moments) -> Eraser:
        if self.task_moments_ is not None:
            check_told_apart(self.task_moments_, self.task_classes_)
        return self._eraser_of(moments, self.task_moments_)

    def _eraser_of(self, moments: Moments, kept: Moments | None) -> Eraser:
        if kept is None:
            return leace(moments, shrinkage=self.shrinkage)
        return splince(moments, kept, shrinkage=self.shrinkage, max_change_ratio=self.max_change_ratio)

    def _keep_both(
        self, moments: Moments, found: Concept, eraser: Eraser | None, kept: Moments | None, aim: Concept | None
    ):
        task_classes = None if aim is None else aim.classes
        return self._keep(moments, found, eraser, task_moments_=kept, task_classes_=task_classes)


def _given_task(y: Any, concept: Any, task: Any) -> Any:
    """Return what is kept, if anything: `task`, or y where it is not the concept."""
    if y is not None and concept is not None and task is not None:
        raise ValueError("got y, concept and task, expected two of them: y is the concept or the task")
    return y if task is None and concept is not None else task
