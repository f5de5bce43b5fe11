"""`Moments`: the mergeable sufficient statistics of (x, labels), one pass over the rows."""

from __future__ import annotations

from ._device import DTYPES, serves
from ._moments import Moments
from ._rows import IGNORE, check_kinds
from ._streams import Aside

__all__ = [
    "Aside",
    "DTYPES",
    "IGNORE",
    "Moments",
    "check_kinds",
    "serves",
]
