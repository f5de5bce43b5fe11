"""`Source`: rows of text and labels from files, `datasets` or Python, with a position that can be kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from ._rows import read_rows, rows_file

PLAIN = (str, int, float, type(None))  # of which a row's digest is made: they look the same whenever they are read


class Source(IterableDataset[Mapping[str, Any]]):
    """Rows, one mapping of columns each, read as they are needed.

    Iterating goes on from the position and moves it; after the end it begins anew. A `DataLoader`, a training loop or
    an interrupted scrub keeps the position with `state_dict` and comes back to it with `load_state_dict`. The workers
    of a `DataLoader` share the rows, each with a position of its own.

    Args:
        source: a .jsonl, .jsonl.gz or .parquet file; a .txt or .txt.gz file, each line a row with the column `text`;
            a `datasets` data set, map-style or streaming; or any iterable of mappings that gives the same rows each
            time. Of an iterator, such as a generator, there is one pass alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of another kind; while reading: it cannot be read, a row holds no columns by name, the rows
            are not those of the position, or an iterator was read to its end before.
        TypeError: it is none of these.
        RuntimeError: an iteration goes on after another one has begun, which has moved the position.

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
        self._rows = 0  # the position: so many were read
        self._last: str | None = None  # the digest of the one before it
        self._taken = 0  # how many an iterator has given: it cannot go back
        self._ended = False
        self._pass = 0  # the number of the iteration that moves the position

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        self._pass += 1
        this = self._pass
        if self._ended:
            if self._once:
                raise ValueError(
                    f"this source is a {type(self.source).__name__}, whose {self._rows} rows were all read: it gives "
                    "them once; pass a list, or a file"
                )
            self._rows, self._last, self._ended = 0, None, False
        place, workers = self._share()
        for number, row in self._numbered():
            if self._pass != this:
                raise RuntimeError("this source was iterated anew meanwhile, which moved its position: iterate it once")
            if not isinstance(row, Mapping):
                raise ValueError(f"row {number} is a {type(row).__name__}, expected columns by name")
            if number < self._rows:
                if number == self._rows - 1 and _digest(row) != self._last:
                    raise ValueError(
                        f"row {number} is not the one that was read before: the state is of another source, or this "
                        "one gives its rows in another order each time"
                    )
                continue
            self._rows, self._last = number + 1, _digest(row)
            if number % workers == place:
                yield row
        self._ended = True

    def state_dict(self) -> dict[str, Any]:
        """The position: how many rows were read, the digest of the last of them, and of what source they are."""
        return {"rows": self._rows, "last": self._last, "of": self._facts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Args:
            state: what `state_dict` gave.

        Raises:
            ValueError: the state is of something else, of another source, or of a row that an iterator has passed.
        """
        here = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(here) or type(state["rows"]) is not int:
            raise ValueError(f"the state is {state!r:.200}, expected what state_dict of a Source gives: {here}")
        rows, facts = state["rows"], here["of"]
        most = facts.get("rows", rows)
        if state["of"] != facts or not 0 <= rows <= most or (rows > 0) != isinstance(state["last"], str):
            raise ValueError(
                f"the state is of row {rows} of a source with {state['of']}, this one has {facts}: load it into the "
                "source that it was taken from"
            )
        if rows < self._taken:
            raise ValueError(f"the state is of row {rows}, and this {type(self.source).__name__} is at {self._taken}")
        self._rows, self._last, self._ended, self._pass = rows, state["last"], False, self._pass + 1

    @property
    def _once(self) -> bool:
        return isinstance(self.source, Iterator)

    def _share(self) -> tuple[int, int]:
        """Which rows are this process's: those whose number leaves the first, divided by the second."""
        worker = get_worker_info()
        if worker is None or isinstance(self.source, IterableDataset):  # which shares its rows out itself
            return 0, 1
        return worker.id, worker.num_workers

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """The rows with their numbers: from the first one on, but of an iterator from where it stands."""
        rows = read_rows(self.source) if isinstance(self.source, Path) else iter(self.source)
        number = self._taken
        for row in rows:
            self._taken += self._once
            yield number, row
            number += 1
        if number < self._rows:
            raise ValueError(f"the source ends after {number} rows, before the position, {self._rows}: it is another")

    def _facts(self) -> dict[str, int]:
        """What tells this source from others and is known without reading it."""
        if isinstance(self.source, Path):
            return {"bytes": self.source.stat().st_size}
        try:
            return {"rows": len(self.source)}  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return {}


def _digest(row: Mapping[str, Any]) -> str:
    """What tells a row from others: its texts and numbers."""
    plain = sorted((str(name), value) for name, value in row.items() if isinstance(value, PLAIN))
    return hashlib.blake2b(repr(plain).encode(errors="surrogatepass"), digest_size=8).hexdigest()
