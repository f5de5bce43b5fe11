"""What the methods share: the concept's columns, whitening, spans, passes over rows, the report."""

from __future__ import annotations

from ._concept import (
    DEPENDENT,
    Concept,
    absent_of,
    canonical_columns,
    check_moments,
    concept_of,
    concepts_of,
    constant_columns,
    fullest,
    hidden_columns,
    union_of,
)
from ._contrasts import MOST_CONTRASTS, Contrasts, check_contrasts, chosen, contrasts_of, crossed_leak, warn_of_none
from ._fitted import check_class, check_count, check_rank, fitted, mean_squared_change, warn_of
from ._leak import expected, warn_of_leaks, warn_of_narrow
from ._one_thread import on_one_thread
from ._row_stream import RowStream, Summary
from ._span import described, span_of
from ._subspace import concept_subspace
from ._whitening import EPSILON, Scaling, Shrinkage, Whitening, factored, scaling_of, whitening_of

__all__ = [
    "Concept",
    "Contrasts",
    "DEPENDENT",
    "EPSILON",
    "MOST_CONTRASTS",
    "RowStream",
    "Scaling",
    "Shrinkage",
    "Summary",
    "Whitening",
    "absent_of",
    "canonical_columns",
    "check_class",
    "check_contrasts",
    "check_count",
    "check_moments",
    "check_rank",
    "chosen",
    "concept_of",
    "concept_subspace",
    "concepts_of",
    "constant_columns",
    "contrasts_of",
    "crossed_leak",
    "described",
    "expected",
    "factored",
    "fitted",
    "fullest",
    "hidden_columns",
    "mean_squared_change",
    "on_one_thread",
    "scaling_of",
    "span_of",
    "union_of",
    "warn_of",
    "warn_of_leaks",
    "warn_of_narrow",
    "warn_of_none",
    "whitening_of",
]
