"""Estimators for scikit-learn: transformers that take a concept out of X.

One for each family of methods that needs no label at `transform`: those that do (`oracle`, `quadratic`, `mimic`,
`swap`) do not fit scikit-learn's protocol and are called as functions.
"""

from __future__ import annotations

from ._moves import AceTransformer, SwitchTransformer
from ._projections import (
    DifferenceInMeansTransformer,
    InlpTransformer,
    LeaceTransformer,
    MeanProjectionTransformer,
    OrthTransformer,
)
from ._rlace import RlaceTransformer
from ._splince import SplinceTransformer

__all__ = [
    "AceTransformer",
    "DifferenceInMeansTransformer",
    "InlpTransformer",
    "LeaceTransformer",
    "MeanProjectionTransformer",
    "OrthTransformer",
    "RlaceTransformer",
    "SplinceTransformer",
    "SwitchTransformer",
]
