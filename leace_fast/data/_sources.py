"""`Source`: rows of text and labels from files, `datasets` or Python, with a position that can be kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ._rows import read_rows, rows_file


class Source:
    """Rows, one mapping of columns each, read as they are needed.

    Iterating goes on from the position and moves it; a `DataLoader`, a training loop or an interrupted scrub keeps it
    with `state_dict` and comes back to it with `load_state_dict`.

    Args:
        source: a .jsonl, .jsonl.gz or .parquet file; a .txt or .txt.gz file, each line a row with the column `text`;
            a `datasets` data set, map-style or streaming; or any iterable of mappings that can be read again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of another kind; while reading: it cannot be read, or a row holds no columns by name.
        TypeError: it is none of these.

    >>> source = Source([{"text": "a"}, {"text": "b"}, {"text": "c"}])
    >>> rows = iter(source)
    >>> next(rows), source.state_dict()["rows"]
    ({'text': 'a'}, 1)
    >>> again = Source([{"text": "a"}, {"text": "b"}, {"text": "c"}])
    >>> again.load_state_dict(source.state_dict())
    >>> [row["text"] for row in again]
    ['b', 'c']
    """

    def __init__(self, source: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> None:
        if isinstance(source, (str, os.PathLike)):
            source = rows_file(source)
        elif not isinstance(source, Iterable) or isinstance(source, (Mapping, bytes)):
            raise TypeError(f"got a {type(source).__name__}, expected a file, a data set or an iterable of rows")
        self.source = source
        self._rows = 0

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        own = hasattr(self.source, "load_state_dict")  # a streaming data set starts where it stands
        rows = read_rows(self.source) if isinstance(self.source, Path) else iter(self.source)
        for number, row in enumerate(rows, self._rows if own else 0):
            if number < self._rows:
                continue
            if not isinstance(row, Mapping):
                raise ValueError(f"row {number} is a {type(row).__name__}, expected columns by name")
            self._rows = number + 1
            yield row

    def state_dict(self) -> dict[str, Any]:
        """The position: the rows that were read, and that of a streaming data set."""
        inner = getattr(self.source, "state_dict", None)
        return {"rows": self._rows, "source": inner() if callable(inner) else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Args:
            state: what `state_dict` gave.

        Raises:
            KeyError: the state is of something else.
        """
        if state["source"] is not None:
            self.source.load_state_dict(state["source"])  # type: ignore[union-attr]
        self._rows = state["rows"]
