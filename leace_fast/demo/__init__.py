"""The demo: the lexical category erased from a small language model of Python code."""

from __future__ import annotations

from ._corpus import ASSETS, CATEGORIES, Module, load_modules
from ._run import CONCEPT, load_demo, run_demo

__all__ = [
    "ASSETS",
    "CATEGORIES",
    "CONCEPT",
    "Module",
    "load_demo",
    "load_modules",
    "run_demo",
]
