"""Linear concept erasure: streaming statistics, closed forms, and erasers inside the forward pass."""

from __future__ import annotations

from . import methods
from ._ops import decompositions
from ._version import __version__
from .attaching import inductor
from .erasers import ConditionalEraser, Eraser, EraserTable, QuantileNormalizer, Report, TargetEraser
from .evaluation import Evaluation, evaluate, random_like
from .folding import FoldReport, LoraReport, export_lora, fold_, fold_residual_, unfold_
from .methods import METHODS, leace
from .models import Site, find_sites, record, tap
from .scrubbing import Scrubber, scrub
from .statistics import Moments

__all__ = [
    "METHODS",
    "ConditionalEraser",
    "Eraser",
    "EraserTable",
    "Evaluation",
    "FoldReport",
    "LoraReport",
    "Moments",
    "QuantileNormalizer",
    "Report",
    "Scrubber",
    "Site",
    "TargetEraser",
    "__version__",
    "decompositions",
    "evaluate",
    "export_lora",
    "find_sites",
    "fold_",
    "fold_residual_",
    "inductor",
    "leace",
    "methods",
    "random_like",
    "record",
    "scrub",
    "tap",
    "unfold_",
]


def __dir__() -> list[str]:
    return sorted(__all__)
