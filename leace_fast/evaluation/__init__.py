"""What a model loses, and what probes still read."""

from __future__ import annotations

from ._control import random_like
from ._evaluation import Evaluation, evaluate
from ._gathering import Rows, SiteRows, erased
from ._losses import batch_nats, bits_per_byte, is_causal, next_token_losses
from ._probe import Probe, linear_probe
from ._probing import without_seen

__all__ = [
    "Evaluation",
    "Probe",
    "Rows",
    "SiteRows",
    "batch_nats",
    "bits_per_byte",
    "erased",
    "evaluate",
    "is_causal",
    "linear_probe",
    "next_token_losses",
    "random_like",
    "without_seen",
]
