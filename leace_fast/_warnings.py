"""One way to warn: the warning points to the user's line, however deep in the package it was noticed."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

import torch

# Decorators and context managers put frames of torch and contextlib between those of the package.
BETWEEN = (os.path.dirname(__file__) + os.sep, os.path.dirname(torch.__file__) + os.sep, contextlib.__file__)


_told: ContextVar[set[str] | None] = ContextVar("told", default=None)  # inside of `once`: what was warned of


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Inside, of warnings about the same thing the first alone is given: what many sites say is said once."""
    token = None if _told.get() is not None else _told.set(set())
    try:
        yield
    finally:
        if token:
            _told.reset(token)


def warn(message: str, category: type[Warning] = UserWarning, about: str = "") -> None:
    """Warn at the first line outside the package that led here.

    Args:
        message: what happened, and what to do about it.
        category: the class of the warning.
        about: names the kind of the warning, of which one is enough inside of `once`.

    >>> with warnings.catch_warnings(record=True) as told:
    ...     warn("3 rows were left out")
    >>> str(told[0].message), told[0].filename.startswith("<doctest")
    ('3 rows were left out', True)
    >>> with warnings.catch_warnings(record=True) as told, once():
    ...     for rows in (3, 4, 5):
    ...         warn(f"{rows} rows were left out", about="rows")
    >>> [str(each.message) for each in told]
    ['3 rows were left out']
    """
    told = _told.get()
    if about and told is not None:
        if about in told:
            return
        told.add(about)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(BETWEEN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
