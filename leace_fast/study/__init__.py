"""The study of `leace-fast fit` and `demo`: what is left at each site, in fresh rows, and what erasing cost."""

from __future__ import annotations

from ._activations import is_shards, study_shards
from ._clock import Clock
from ._models import load_config, load_model, load_tokenizer
from ._plots import plot_loss, plot_probes
from ._present import points, probe_table, stage_line, variant_table, verdict, write_study
from ._records import Fitted, Loss, Reading, SiteResult, Study
from ._study import run_study
from ._texts import evaluate_texts, read_batches, scrub_texts, study_texts

__all__ = [
    "Clock",
    "Fitted",
    "Loss",
    "Reading",
    "SiteResult",
    "Study",
    "evaluate_texts",
    "is_shards",
    "load_config",
    "load_model",
    "load_tokenizer",
    "plot_loss",
    "plot_probes",
    "points",
    "probe_table",
    "read_batches",
    "run_study",
    "scrub_texts",
    "stage_line",
    "study_shards",
    "study_texts",
    "variant_table",
    "verdict",
    "write_study",
]
