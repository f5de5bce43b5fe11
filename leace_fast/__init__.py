"""Linear concept erasure: streaming statistics, closed forms, and erasers inside the forward pass."""

from __future__ import annotations

from ._version import __version__
from .eraser import Eraser
from .fold import FoldReport, fold_, unfold_
from .methods import METHODS, leace, mean_projection, orth, random_subspace
from .moments import Moments
from .record import record
from .report import Report
from .scrubber import Scrubber
from .scrubbing import scrub
from .sites import Site, find_sites, tap

__all__ = [
    "METHODS",
    "Eraser",
    "FoldReport",
    "Moments",
    "Report",
    "Scrubber",
    "Site",
    "__version__",
    "find_sites",
    "fold_",
    "leace",
    "mean_projection",
    "orth",
    "random_subspace",
    "record",
    "scrub",
    "tap",
    "unfold_",
]
