"""The study of `leace-fast fit` and `demo`: what was erased at each site and what it cost."""

from __future__ import annotations

from ._jobs import evaluate_texts, is_shards, load_model, read_batches, scrub_texts, study_shards, study_texts
from ._plots import plot_loss, plot_probes
from ._present import loss_table, probe_table, stage_line, verdict, write_study
from ._study import Clock, Loss, SiteResult, Study, run_study

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
