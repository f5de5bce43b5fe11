"""`Moments`: the mergeable sufficient statistics of (x, labels), one pass over the rows."""

from __future__ import annotations

from ._checks import check_shapes
from ._group_sums import Cells, summed
from ._kernels import GPU_ROW_DTYPES, serves
from ._kind import Kind
from ._moments import Moments, update_all
from ._rows import IGNORE
from ._streams import Aside

__all__ = [
    "Aside",
    "Cells",
    "GPU_ROW_DTYPES",
    "IGNORE",
    "Kind",
    "Moments",
    "check_shapes",
    "serves",
    "summed",
    "update_all",
]
