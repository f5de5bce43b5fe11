"""One thing that is refused: how to get there, the error, and the reason that the page gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """A call that must fail, and what a reader is told of it.

    Attributes:
        what: what came, in a few words: the first column of the page.
        why: what would go wrong otherwise, or what to do: the last column.
        call: does it; takes a folder to write in.
        says: a part of the message, which the page quotes.
        error: the type of the error.
        needs: a module without which the test is skipped.
    """

    what: str
    why: str
    call: Callable[[Path], Any]
    says: str
    error: type[Exception] = ValueError
    needs: str = ""
