"""The methods: pure functions from `Moments` to `Eraser`, one a file, by name in `METHODS`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from ..erasers import Eraser
from ._ace import ace
from ._alf_qleace import alf_qleace
from ._difference_in_means import difference_in_means, fixed_direction
from ._inlp import inlp
from ._leace import leace
from ._mean_projection import mean_projection
from ._oracle import oracle
from ._orth import orth
from ._quadratic import mimic, quadratic, quadratic_editor
from ._quantiles import median, normalize_quantiles, swap
from ._random import random_subspace
from ._rlace import rlace
from ._splince import splince
from ._switch import switch


class Method(NamedTuple):
    """A row of `METHODS`: called, it fits.

    Attributes:
        fit: the function.
        needs: what it needs beside the moments of one concept; empty where these are enough.
        several: whether it takes a list of the moments of several concepts too.
    """

    fit: Callable[..., Any]
    needs: str = ""
    several: bool = False

    def __call__(self, *data: Any, **options: Any) -> Any:
        return self.fit(*data, **options)


ROWS = "passes over the rows"
CLASS_COVARIANCES = "class covariances, Moments(per_class=True)"

METHODS: dict[str, Method] = {
    "leace": Method(leace, several=True),
    "orth": Method(orth, several=True),
    "mean_projection": Method(mean_projection),
    "difference_in_means": Method(difference_in_means),
    "inlp": Method(inlp),
    "ace": Method(ace),
    "switch": Method(switch),
    "splince": Method(splince, "the moments of a task to keep", several=True),
    "alf_qleace": Method(alf_qleace, CLASS_COVARIANCES),
    "oracle": Method(oracle, "the labels where it is applied"),
    "quadratic": Method(quadratic, "class covariances, and the labels where it is applied"),
    "quadratic_editor": Method(quadratic_editor, "class covariances, and the labels where it is applied"),
    "rlace": Method(rlace, ROWS),
    "median": Method(median, ROWS),
    "swap": Method(swap, "passes over the rows, and the labels where it is applied"),
    "normalize_quantiles": Method(normalize_quantiles, "passes over the rows, and the labels where it is applied"),
    "mimic": Method(mimic, "class covariances, and the labels where it is applied"),
}


def moments_method(name: str) -> Callable[..., Eraser]:
    """Return the method of a name if it makes an `Eraser` from the moments of one concept alone.

    Raises:
        ValueError: there is no such method, or it needs more than that.

    >>> moments_method("leace") is leace
    True
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown method {name!r}, expected one of {', '.join(METHODS)}{meant}")
    method = METHODS[name]
    if method.needs:
        enough = ", ".join(one for one in METHODS if not METHODS[one].needs)
        raise ValueError(f"the method {name!r} needs {method.needs}: call it in Python, or use one of {enough}")
    return method.fit


__all__ = [
    "METHODS",
    "Method",
    "ace",
    "alf_qleace",
    "difference_in_means",
    "fixed_direction",
    "inlp",
    "leace",
    "mean_projection",
    "median",
    "mimic",
    "moments_method",
    "normalize_quantiles",
    "oracle",
    "orth",
    "quadratic",
    "quadratic_editor",
    "random_subspace",
    "rlace",
    "splince",
    "swap",
    "switch",
]
