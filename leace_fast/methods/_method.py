"""What the table of methods knows of each: the function, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

# What a method may need beside the moments of one concept.
TASK = "the moments of a task to keep"
CLASS_COVARIANCES = "class covariances, Moments(per_class=True)"
ROWS = "passes over the rows"
LABELS = "the labels where it is applied"
LABELS_AND_COVARIANCES = f"class covariances, and {LABELS}"
LABELS_AND_ROWS = f"{ROWS}, and {LABELS}"


class Method(NamedTuple):
    """A row of `METHODS`: called, it fits.

    Attributes:
        fit: the function, whose name is that of the method.
        needs: what it needs beside the moments of one concept; empty where these are enough.
        several: whether it takes a list of the moments of several concepts too.
        targets: whether it takes real-valued targets, or else classes alone.

    Source: docs/methods.md, where each row is measured.

    >>> from leace_fast import METHODS
    >>> METHODS["orth"].name, METHODS["orth"].needs, METHODS["oracle"].needs
    ('orth', '', 'the labels where it is applied')
    """

    fit: Callable[..., Any]
    needs: str = ""
    several: bool = False
    targets: bool = True

    @property
    def name(self) -> str:
        """Name of the method, by which `METHODS` and the command line know it."""
        return self.fit.__name__

    def __call__(self, *data: Any, **options: Any) -> Any:
        """Return what the function makes of moments, or of what else it needs, and its options."""
        return self.fit(*data, **options)
