"""The methods: pure functions from `Moments` to `Eraser`, one a file, by name in `METHODS`."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from ..erasers import Eraser
from ._ace import ace
from ._alf_qleace import alf_qleace
from ._difference_in_means import difference_in_means, fixed_direction
from ._inlp import inlp
from ._leace import leace
from ._mean_projection import mean_projection
from ._method import CLASS_COVARIANCES, LABELS, LABELS_AND_COVARIANCES, LABELS_AND_ROWS, ROWS, TASK, Method
from ._oracle import oracle
from ._orth import orth
from ._quadratic import mimic, quadratic, quadratic_editor
from ._quantiles import median, normalize_quantiles, swap
from ._random import random_subspace
from ._rlace import rlace
from ._splince import splince
from ._switch import switch

# Beside a row here, a method is its file and a row in tests/cases.py: the names of this module, its transformer in
# `leace_fast.sklearn` and its row in docs/methods.md follow from this table.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(leace, several=True),
        Method(orth, several=True),
        Method(mean_projection, targets=False),
        Method(difference_in_means, targets=False),
        Method(inlp),
        Method(ace, targets=False),
        Method(switch, targets=False),
        Method(splince, TASK, several=True),
        Method(alf_qleace, CLASS_COVARIANCES, targets=False),
        Method(oracle, LABELS),
        Method(quadratic, LABELS_AND_COVARIANCES, targets=False),
        Method(mimic, LABELS_AND_COVARIANCES, targets=False),
        Method(quadratic_editor, LABELS_AND_COVARIANCES, targets=False),
        Method(rlace, ROWS, targets=False),
        Method(median, ROWS, targets=False),
        Method(swap, LABELS_AND_ROWS, targets=False),
        Method(normalize_quantiles, LABELS_AND_ROWS, targets=False),
    )
}


def moments_method(name: str) -> Callable[..., Eraser]:
    """Return the method of a name if it makes an `Eraser` from the moments of one concept alone.

    Args:
        name: of a row of `METHODS`.

    Raises:
        ValueError: there is no such method, or it needs more than that.

    Source: the column `needs` of docs/methods.md.

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


__all__ = ["METHODS", "Method", "fixed_direction", "moments_method", "random_subspace", *METHODS]  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted(__all__)
