"""The methods: pure functions from `Moments` to `Eraser`, one a file, by name in `METHODS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..eraser import Eraser
from ._leace import leace
from ._mean_projection import mean_projection
from ._orth import orth
from ._random import random_subspace


class Method(NamedTuple):
    """A row of `METHODS`: called, it fits.

    Attributes:
        fit: the function.
        needs: what it needs beside the moments of one concept; empty where these are enough.
    """

    fit: Callable[..., Any]
    needs: str = ""

    def __call__(self, *data: Any, **options: Any) -> Any:
        return self.fit(*data, **options)


METHODS: dict[str, Method] = {
    "leace": Method(leace),
    "orth": Method(orth),
    "mean_projection": Method(mean_projection),
}


def moments_method(name: str) -> Callable[..., Eraser]:
    """Return the method of a name if it makes an `Eraser` from the moments of one concept alone.

    Raises:
        ValueError: there is no such method, or it needs more than that.

    >>> moments_method("leace") is leace
    True
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}, expected one of {', '.join(METHODS)}")
    method = METHODS[name]
    if method.needs:
        enough = ", ".join(one for one in METHODS if not METHODS[one].needs)
        raise ValueError(f"the method {name!r} needs {method.needs}: call it in Python, or use one of {enough}")
    return method.fit


__all__ = ["METHODS", "Method", "leace", "mean_projection", "moments_method", "orth", "random_subspace"]
