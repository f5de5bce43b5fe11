"""The demo: the lexical category erased from a small language model of Python code."""

from __future__ import annotations

from ._corpus import ASSETS, CATEGORIES, Module, load_modules
from ._run import CONCEPT, Demo, batches_of, fits, load_demo, load_language_model, machine, run_demo, scrub_demo

__all__ = [
    "ASSETS",
    "CATEGORIES",
    "CONCEPT",
    "Demo",
    "Module",
    "batches_of",
    "fits",
    "load_demo",
    "load_language_model",
    "load_modules",
    "machine",
    "run_demo",
    "scrub_demo",
]
