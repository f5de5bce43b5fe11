"""Files of rows, one mapping of columns each, read as they are needed: each format is one line of `READERS`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._extras import optional
from .._schema import is_text
from ._lines import numbered_lines

Columns = Mapping[str, str]  # those that are needed, each with what to do where one is missing


def rows_file(path: str | os.PathLike[str], holding: str = "rows of text") -> Path:
    """The path of a file that `read_rows` can read.

    Args:
        path: the file.
        holding: what is expected in it, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of another kind, or a folder.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path} is of an unknown kind, expected one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file of {holding}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, expected {holding}: {', '.join(SUFFIXES)}")
    return path


def read_rows(path: Path, columns: Columns | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that `rows_file` has found.

    Args:
        path: a .jsonl or .parquet file; or a .txt file, each line a row with the column `text`; lines may be in .gz.
        columns: those that each row must have, with the advice of the error where one is missing; None for all.

    Raises:
        ValueError: the file cannot be read, lacks a column or has it twice, or holds what is no text; a line is
            numbered.
    """
    reader = next(reader for suffix, reader in READERS.items() if path.name.endswith(suffix))
    return reader(path, columns)


def _read_json_lines(path: Path, columns: Columns | None) -> Iterator[dict[str, Any]]:
    for number, line in numbered_lines(path, "JSON lines in UTF-8"):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} is no JSON ({error}), expected an object") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is no object, expected one object a line")
        if "\\u" in line and not is_text(json.dumps(row, ensure_ascii=False)):
            raise ValueError(
                f"line {number} of {path} holds half of a surrogate pair, which no tokenizer and no file takes: repair "
                "it or leave it out"
            )
        _check_columns(columns, row, f"line {number} of {path}")
        yield row


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, each key of which stands once: of two values Python would keep the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {_twice([key for key, _ in pairs])!r} stands in it twice")
    return found


def _twice(names: Sequence[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _read_text_lines(path: Path, columns: Columns | None) -> Iterator[dict[str, Any]]:
    _check_columns(columns, ["text"], str(path))
    for _, line in numbered_lines(path, "text in UTF-8"):
        yield {"text": line.rstrip("\r\n")}


def _read_parquet(path: Path, columns: Columns | None) -> Iterator[dict[str, Any]]:
    with optional("parquet files need pyarrow"):
        from pyarrow import ArrowException, parquet
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise ValueError(f"{path} holds the column {_twice(names)!r} twice, expected each once")
            batches = file.iter_batches(1024, columns=None if columns is None else list(columns))
            _check_columns(columns, names, str(path))
            for batch in batches:
                yield from batch.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}), expected a parquet file") from error


READERS = {
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".parquet": _read_parquet,
    ".txt": _read_text_lines,
    ".txt.gz": _read_text_lines,
}
SUFFIXES = tuple(READERS)


def _check_columns(columns: Columns | None, present: Any, where: str) -> None:
    for column, advice in (columns or {}).items():
        if column not in present:
            names = ", ".join(repr(name) for name in present) or "none"
            raise ValueError(f"{where} has no column {column!r}; its columns: {names}; {advice}")
