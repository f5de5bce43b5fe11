"""The study of `leace-fast fit` and `demo`: what was erased at each site and what it cost."""

from __future__ import annotations

from ._activations import is_shards, study_shards
from ._clock import Clock
from ._models import load_model
from ._plots import plot_loss, plot_probes
from ._present import loss_table, probe_table, stage_line, verdict, write_study
from ._records import Loss, SiteResult, Study
from ._study import run_study
from ._texts import evaluate_texts, read_batches, scrub_texts, study_texts

__all__ = [
    "Clock",
    "Loss",
    "SiteResult",
    "Study",
    "evaluate_texts",
    "is_shards",
    "load_model",
    "loss_table",
    "plot_loss",
    "plot_probes",
    "probe_table",
    "read_batches",
    "run_study",
    "scrub_texts",
    "stage_line",
    "study_shards",
    "study_texts",
    "verdict",
    "write_study",
]
