"""Erasers in a model's weights, or in a LoRA adapter."""

from __future__ import annotations

from ._folding import FoldReport, fold_, folded_sites, unfold_
from ._lora import LoraReport, export_lora
from ._residual import fold_residual_

__all__ = [
    "FoldReport",
    "LoraReport",
    "export_lora",
    "fold_",
    "fold_residual_",
    "folded_sites",
    "unfold_",
]
