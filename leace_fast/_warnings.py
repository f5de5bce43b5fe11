"""One way to warn: the warning points to the user's line, however deep in the package it was noticed."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

import torch

# Decorators and context managers put frames of torch and contextlib between those of the package.
BETWEEN = (os.path.dirname(__file__) + os.sep, os.path.dirname(torch.__file__) + os.sep, contextlib.__file__)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the first line outside the package that led here.

    Args:
        message: what happened, and what to do about it.
        category: the class of the warning.

    >>> with warnings.catch_warnings(record=True) as told:
    ...     warn("3 rows were left out")
    >>> str(told[0].message), told[0].filename.startswith("<doctest")
    ('3 rows were left out', True)
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(BETWEEN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
