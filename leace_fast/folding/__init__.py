"""Erasers in a model's weights, or in a LoRA adapter."""

from __future__ import annotations

from ._folding import FoldReport, fold_, folded_record, folded_sites, unfold_
from ._lora import CONFIG, WEIGHTS, LoraReport, export_lora
from ._record import KEY, digest_of_weights
from ._residual import fold_residual_

__all__ = [
    "CONFIG",
    "FoldReport",
    "KEY",
    "LoraReport",
    "WEIGHTS",
    "digest_of_weights",
    "export_lora",
    "fold_",
    "fold_residual_",
    "folded_record",
    "folded_sites",
    "unfold_",
]
