"""What a model loses, and what probes still read."""

from __future__ import annotations

from ._evaluation import Evaluation, evaluate, is_causal, random_like
from ._loss import batch_nats, bits_per_byte
from ._probe import Probe, linear_probe

__all__ = [
    "Evaluation",
    "Probe",
    "batch_nats",
    "bits_per_byte",
    "evaluate",
    "is_causal",
    "linear_probe",
    "random_like",
]
