"""The transformer that takes a concept out of X and keeps its covariance with a task."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike

from ..methods import leace, splince
from ..methods._whitening import Shrinkage
from ._base import ConceptTransformer, Kind, read_concept


class SplinceTransformer(ConceptTransformer):
    """Takes a concept out of X, with the least change that keeps the covariance of X with a task.

    Args:
        shrinkage, kind: as in `LeaceTransformer`; `kind` is that of the concept.
        task_kind: "classes" or "numbers", what the task holds; "auto" as scikit-learn takes it.
        max_cost_ratio: refuse a map that changes X more than so many times as `LeaceTransformer` does.

    Source: Holstege, Ravfogel and Wouters 2025, https://arxiv.org/abs/2506.10703, theorem 1.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 4))
    >>> task, concept = X[:, 0], X[:, 0] + X[:, 1] > 0
    >>> kept = SplinceTransformer().fit(X, concept, task=task).transform(X)
    >>> np.allclose(np.cov(kept[:, 0], task)[0, 1], np.cov(X[:, 0], task)[0, 1])
    True
    """

    def __init__(
        self,
        *,
        shrinkage: Shrinkage = "auto",
        kind: Kind = "auto",
        task_kind: Kind = "auto",
        max_cost_ratio: float = 100.0,
    ) -> None:
        self.shrinkage: Shrinkage = shrinkage
        self.kind = kind
        self.task_kind: Kind = task_kind
        self.max_cost_ratio = max_cost_ratio

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
        """
        if y is not None and concept is not None and task is not None:
            raise ValueError("got y, concept and task, expected two of them: y is the concept or the task")
        rows = self._rows(X, reset=True)
        found = self._concept(rows, y, concept)
        moments = found.moments(rows.shape[1]).update(rows, torch.from_numpy(found.targets))
        kept = y if task is None and concept is not None else task
        if kept is None:
            eraser = leace(moments, shrinkage=self.shrinkage)
        else:
            aim = read_concept("task", kept, self.task_kind, rows)
            task_moments = aim.moments(rows.shape[1]).update(rows, torch.from_numpy(aim.targets))
            eraser = splince(moments, task_moments, shrinkage=self.shrinkage, max_cost_ratio=self.max_cost_ratio)
        self.eraser_, self.classes_ = eraser, found.classes
        return self
