"""The methods: pure functions from `Moments` to `Eraser`, one a file, by name in `METHODS`."""

from __future__ import annotations

from collections.abc import Callable

from ..eraser import Eraser
from ._leace import leace
from ._random import random_subspace

METHODS: dict[str, Callable[..., Eraser]] = {"leace": leace}

__all__ = ["METHODS", "leace", "random_subspace"]
