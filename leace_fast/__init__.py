"""Linear concept erasure: streaming statistics, closed forms, and erasers inside the forward pass."""

from __future__ import annotations

from ._version import __version__
from .acts import tap
from .attaching.inductor import inductor
from .conditional import ConditionalEraser, TargetEraser
from .eraser import Eraser
from .evaluate import Evaluation, evaluate, random_like
from .fold import FoldReport, fold_, unfold_
from .folding.lora import LoraReport, export_lora
from .folding.residual import fold_residual_
from .methods import (
    METHODS,
    ace,
    alf_qleace,
    difference_in_means,
    fixed_direction,
    inlp,
    leace,
    mean_projection,
    median,
    mimic,
    normalize_quantiles,
    oracle,
    orth,
    quadratic,
    quadratic_editor,
    random_subspace,
    rlace,
    splince,
    swap,
    switch,
)
from .moments import Moments
from .quantiles import QuantileNormalizer
from .record import record
from .report import Report
from .scrubber import Scrubber
from .scrubbing.scrub import scrub
from .sites import Site, find_sites
from .table import EraserTable

__all__ = [
    "METHODS",
    "ConditionalEraser",
    "Eraser",
    "Evaluation",
    "EraserTable",
    "FoldReport",
    "LoraReport",
    "Moments",
    "QuantileNormalizer",
    "Report",
    "Scrubber",
    "Site",
    "TargetEraser",
    "__version__",
    "ace",
    "alf_qleace",
    "difference_in_means",
    "export_lora",
    "evaluate",
    "find_sites",
    "fixed_direction",
    "fold_",
    "fold_residual_",
    "inductor",
    "inlp",
    "leace",
    "mean_projection",
    "median",
    "mimic",
    "normalize_quantiles",
    "oracle",
    "orth",
    "quadratic",
    "quadratic_editor",
    "random_like",
    "random_subspace",
    "record",
    "rlace",
    "scrub",
    "splince",
    "swap",
    "switch",
    "tap",
    "unfold_",
]
