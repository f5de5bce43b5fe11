"""Erasers in a model's forward pass: hooks on sites, and norms that erase in the pass that norms."""

from __future__ import annotations

from ._attachment import Attachment
from ._compiled_graphs import inductor

__all__ = [
    "Attachment",
    "inductor",
]
