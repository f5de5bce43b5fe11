"""Files of rows, one mapping of columns each, read as they are needed: each format is one line of `READERS`."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._extras import optional

Columns = Mapping[str, str]  # those that are needed, each with what to do where one is missing


def rows_file(path: str | os.PathLike[str], holding: str = "rows of text") -> Path:
    """The path of a file that `read_rows` can read.

    Args:
        path: the file.
        holding: what is expected in it, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of another kind.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path} is of an unknown kind, expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, expected {holding}: {', '.join(SUFFIXES)}")
    return path


def read_rows(path: Path, columns: Columns | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that `rows_file` has found.

    Args:
        path: a .jsonl or .parquet file; or a .txt file, each line a row with the column `text`; lines may be in .gz.
        columns: those that each row must have, with the advice of the error where one is missing; None for all.

    Raises:
        ValueError: the file cannot be read, or lacks a column; a line is numbered.
    """
    reader = next(reader for suffix, reader in READERS.items() if path.name.endswith(suffix))
    return reader(path, columns)


def _read_json_lines(path: Path, columns: Columns | None) -> Iterator[dict[str, Any]]:
    for number, line in _numbered_lines(path, "JSON lines in UTF-8"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is no JSON ({error}), expected an object") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is no object, expected one object a line")
        _check_columns(columns, row, f"line {number} of {path}")
        yield row


def _read_text_lines(path: Path, columns: Columns | None) -> Iterator[dict[str, Any]]:
    _check_columns(columns, ["text"], str(path))
    for _, line in _numbered_lines(path, "text in UTF-8"):
        yield {"text": line.rstrip("\r\n")}


def _read_parquet(path: Path, columns: Columns | None) -> Iterator[dict[str, Any]]:
    with optional("parquet files need pyarrow"):
        from pyarrow import ArrowInvalid, parquet
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(columns, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(1024, columns=None if columns is None else list(columns)):
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read ({error}), expected a parquet file") from error


READERS = {
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".parquet": _read_parquet,
    ".txt": _read_text_lines,
    ".txt.gz": _read_text_lines,
}
SUFFIXES = tuple(READERS)


def _numbered_lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from enumerate(file, 1)
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}), expected {expected}") from error


def _check_columns(columns: Columns | None, present: Any, where: str) -> None:
    for column, advice in (columns or {}).items():
        if column not in present:
            names = ", ".join(repr(name) for name in present) or "none"
            raise ValueError(f"{where} has no column {column!r}; its columns: {names}; {advice}")
