"""The transformers that move X to a class instead of to the mean of all."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metaestimators import available_if

from ..erasers import Eraser
from ..fitting import Shrinkage
from ..methods import ace, switch
from ..statistics import Moments
from ._base import StreamingTransformer


def _reflects(transformer: SwitchTransformer) -> bool:
    if transformer.to is not None:
        raise AttributeError("all classes were moved to one, which cannot be undone: to=None reflects two classes")
    return True


class AceTransformer(StreamingTransformer):
    """Gives every row of X the reference class's part along the differences of class means.

    Args:
        reference: position among the sorted classes of the one without the concept.
        to: that of the class that `strength` leads to; not needed with two classes.
        strength: 0 gives the reference, 1 that class, beyond them exaggerates.

    Source: Marshall et al. 2024, https://arxiv.org/abs/2411.09003, equation 7.

    >>> import numpy as np
    >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
    >>> moved = AceTransformer(reference=1).fit_transform(X, y)
    >>> np.allclose(moved[y == 0].mean(0), moved[y == 1].mean(0))
    True
    """

    kind = "classes"

    def __init__(self, *, reference: int = 0, to: int | None = None, strength: float = 0.0) -> None:
        self.reference = reference
        self.to = to
        self.strength = strength

    def _fit_eraser(self, moments: Moments) -> Eraser:
        return ace(moments, self.reference, to=self.to, strength=self.strength)


class SwitchTransformer(StreamingTransformer):
    """Reflects two classes of X into each other, or moves all classes to the mean of one.

    Args:
        to: position among the sorted classes of the one to move to; None reflects two classes.
        shrinkage: of the correlation matrix: "auto", True, False or a weight from 0 to 1.

    Source: see `leace_fast.methods.switch`.

    >>> import numpy as np
    >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
    >>> moved = SwitchTransformer(to=None).fit_transform(X, y)
    >>> np.allclose(moved[y == 0].mean(0), X[y == 1].mean(0))
    True
    """

    kind = "classes"

    def __init__(self, *, to: int | None = 0, shrinkage: Shrinkage = "auto") -> None:
        self.to = to
        self.shrinkage: Shrinkage = shrinkage

    @available_if(_reflects)
    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return the X (n, d) that `transform` would turn into this one: a reflection undoes itself."""
        return self.transform(X)

    def _fit_eraser(self, moments: Moments) -> Eraser:
        return switch(moments, self.to, shrinkage=self.shrinkage)
