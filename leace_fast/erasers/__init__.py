"""Erasers: frozen affine maps of low rank, those that are told the labels, and tables of several."""

from __future__ import annotations

from ._conditional import ConditionalEraser, TargetEraser
from ._digest import digest_of_eraser, digest_of_erasers
from ._eraser import Eraser
from ._linear import MAX_COST_RATIO
from ._quantiles import QuantileNormalizer
from ._report import Report
from ._table import EraserTable

__all__ = [
    "ConditionalEraser",
    "Eraser",
    "EraserTable",
    "MAX_COST_RATIO",
    "QuantileNormalizer",
    "Report",
    "TargetEraser",
    "digest_of_eraser",
    "digest_of_erasers",
]
