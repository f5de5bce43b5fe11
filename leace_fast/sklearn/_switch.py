"""The transformer of `switch`, whose reflection undoes itself."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metaestimators import available_if

from ..methods import METHODS
from ._made import transformer_of

# To the first class unless told otherwise: a reflection is for two classes only.
Made: Any = transformer_of(METHODS["switch"], to=0)


def _reflects(transformer: SwitchTransformer) -> bool:
    if transformer.to is not None:
        raise AttributeError("all classes were moved to one, which cannot be undone: to=None reflects two classes")
    return True


class SwitchTransformer(Made):
    __doc__ = str(Made.__doc__)

    @available_if(_reflects)
    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return the X that `transform` would turn into this one: a reflection undoes itself.

        Args:
            X: (n, d) real numbers, float64 or float32.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: X is not of the width that was fitted, or a number is not finite.

        Source: Gaintseva et al. 2026, https://arxiv.org/abs/2605.05220, equation 13, about the midpoint.

        >>> import numpy as np
        >>> from leace_fast.sklearn import SwitchTransformer
        >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
        >>> switch = SwitchTransformer(to=None).fit(X, y)
        >>> np.allclose(switch.inverse_transform(switch.transform(X)), X)
        True
        """
        return self.transform(X)
