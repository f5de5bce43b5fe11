"""The public names of the package `concept-erasure`, on this engine: change the import and nothing else.

Where results differ on purpose is listed in docs/migrating.md.
"""

from __future__ import annotations

from .concept_scrubber import ConceptScrubber
from .groupby import GroupedTensor, groupby
from .leace import ErasureMethod, LeaceEraser, LeaceFitter
from .oracle import OracleEraser, OracleFitter
from .quadratic import QuadraticEditor, QuadraticEraser, QuadraticFitter
from .quantile import QuantileNormalizer, cdf, icdf
from .shrinkage import optimal_linear_shrinkage
from .utils import assert_type

__all__ = [
    "ConceptScrubber",
    "ErasureMethod",
    "GroupedTensor",
    "LeaceEraser",
    "LeaceFitter",
    "OracleEraser",
    "OracleFitter",
    "QuadraticEditor",
    "QuadraticEraser",
    "QuadraticFitter",
    "QuantileNormalizer",
    "assert_type",
    "cdf",
    "groupby",
    "icdf",
    "optimal_linear_shrinkage",
]
