"""Linear concept erasure: streaming statistics, closed forms, and erasers inside the forward pass."""

from __future__ import annotations

from ._version import __version__
from .eraser import Eraser
from .methods import METHODS, leace, random_subspace
from .moments import Moments
from .report import Report

__all__ = ["METHODS", "Eraser", "Moments", "Report", "__version__", "leace", "random_subspace"]
