"""The transformer of R-LACE, which goes over the rows again and again."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike

from .._ops import tensor_from
from ..methods import rlace
from ._base import ConceptTransformer


class RlaceTransformer(ConceptTransformer):
    """Drops from standardised X the directions without which the best logistic classifier of y does worst.

    Columns count alike, whatever their units. With as many directions as the class means span it is a closed form that
    makes these equal, and no batch is needed.

    Args:
        rank: number of directions, at most that of what the class means span: classes - 1 or fewer.
        steps: batches used in all, with fewer directions than that.
        batch_size: rows in a batch.
        random_state: seed of the order of the rows.

    Raises:
        ValueError: `fit` meets an option that is out of range, or refuses as `leace_fast.methods.rlace` does.

    Source: Ravfogel et al. 2022, https://arxiv.org/abs/2201.12091, equation 6 and algorithm 1.

    >>> import numpy as np
    >>> X, y = np.random.default_rng(0).normal(size=(400, 4)), np.arange(400) % 2
    >>> X[:, 2] += 4 * y
    >>> eraser = RlaceTransformer().fit(X, y).eraser_
    >>> bool(abs(eraser.left[2, 0]) > 10 * abs(eraser.left[:2]).max())
    True
    """

    kind = "classes"

    def __init__(self, *, rank: int = 1, steps: int = 2000, batch_size: int = 256, random_state: int = 0) -> None:
        self.rank = rank
        self.steps = steps
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, *, concept: ArrayLike | None = None):
        """Fit the eraser of a concept and return self.

        Args:
            X: (n, d) real numbers, float64 or float32.
            y: (n,) classes of any type.
            concept: in place of y, where y is something else.

        Raises:
            ValueError: no concept is given, it has one class only, a number is not finite, or rank exceeds what the
                class means span.

        Source: Ravfogel et al. 2022, https://arxiv.org/abs/2201.12091, algorithm 1.

        >>> import numpy as np
        >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
        >>> RlaceTransformer(steps=20).fit(X, y).eraser_.rank
        1
        """
        rows = self._rows(X, reset=True)
        found = self._concept(rows, y, concept)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.random_state))
        x, labels = rows[order], tensor_from(found.targets)[order]
        batches = list(zip(x.split(self.batch_size), labels.split(self.batch_size), strict=True))
        eraser = rlace(batches, self.rank, steps=self.steps)
        vars(self).update(eraser_=eraser, classes_=found.classes)
        return self
