"""Texts with columns of labels and of groups, read from a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..statistics import IGNORE
from ._classes import as_classes, check_kind
from ._lines import check_text
from ._rows import read_rows, rows_file


class Texts(NamedTuple):
    """Texts with the classes of each, one for each concept, and the group that each belongs to.

    Attributes:
        texts: the texts.
        labels: the classes of each text, in the order of the concepts; -100 where it has none.
        class_names: by concept, the names of its classes as they stood in the file.
        groups: the number of each text's group: its speaker, author or document; empty where each distinct text is one.
        group_names: of the groups 0, 1, ..., as they stood in the file.
    """

    texts: list[str]
    labels: list[tuple[int, ...]]
    class_names: dict[str, tuple[str, ...]]
    groups: Sequence[int] = ()
    group_names: Sequence[str] = ()


def read_texts(
    path: str | os.PathLike[str],
    text: str = "text",
    label: str | Sequence[str] | None = "label",
    groups: str | None = None,
) -> Texts:
    r"""Read a column of texts and one or several columns of labels from a .jsonl, .jsonl.gz or .parquet file.

    Labels may be strings, integers or booleans; the classes of each column are numbered in sorted order. Rows whose
    text is missing or empty, or all of whose labels are, are left out. Groups are numbered in the order of their hash.

    Args:
        path: the file; without labels and groups also .txt or .txt.gz, each line a row with the column `text`.
        text: the column of texts.
        label: the column of labels, or several, one for each concept; None for texts without labels.
        groups: the column that says which speaker, author or document a text is of, strings or integers; None where
            each distinct text is a group.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or lacks a column, its texts are no strings, its labels are not classes, a
            text has no group, or no column of labels is named, or one twice.
        ImportError: a .parquet file needs pyarrow.

    >>> import tempfile
    >>> from pathlib import Path
    >>> rows = '{"text": "hot", "label": "warm", "by": "Ann"}\n{"text": "icy", "label": "cold", "by": "Ann"}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "texts.jsonl").write_text(rows)
    ...     data = read_texts(Path(folder, "texts.jsonl"), groups="by")
    >>> data.labels, data.class_names, data.groups, data.group_names
    ([(1,), (0,)], {'label': ('cold', 'warm')}, [0, 0], ['Ann'])
    """
    columns = [label] if isinstance(label, str) else list(label or ())
    if (not columns and label is not None) or len(set(columns)) < len(columns):
        named = f"{', '.join(map(repr, columns)) or 'none'}"
        raise ValueError(f"the columns of labels are {named}, expected one or several, each once: name them by --label")
    path = rows_file(path, "texts with labels" if columns else "texts")
    kept, rows = _kept_rows(path, text, columns, groups)
    classes, names = [], {}
    for place, column in enumerate(columns, 1):
        numbers, names[column] = _numbered([row[place] for row in kept], f"column {column!r} of {path}", rows)
        classes.append(numbers)
    labels = list(zip(*classes, strict=True)) if columns else [()] * len(kept)
    each = _groups([row[-1] for row in kept], f"column {groups!r} of {path}", rows)
    return numbered(Texts([row[0] for row in kept], labels, names), each)


def _kept_rows(path: Path, text: str, columns: Sequence[str], groups: str | None) -> tuple[list[list[Any]], list[int]]:
    """The text, the labels and the group of each row that has a text and, if any are asked for, a label; its number."""
    needed = {groups: "name one with --groups"} if groups is not None else {}
    needed |= dict.fromkeys(columns, "name one with --label") | {text: "name one with --text"}
    order = {name: needed[name] for name in (text, *columns, *needed)}  # in which missing ones are told
    wanted = [text, *columns, text if groups is None else groups]
    rows = (([row[column] for column in wanted], number) for number, row in enumerate(read_rows(path, order), 1))
    kept = [row for row in rows if _given(row[0][0]) and (not columns or any(map(_given, row[0][1:-1])))]
    for (value, *_), number in kept:
        if not isinstance(value, str):
            raise ValueError(
                f"column {text!r} of {path} holds {value!r}, expected strings: name another with --text (row {number})"
            )
    return [row for row, _ in kept], [number for _, number in kept]


def _groups(values: Sequence[Any], where: str, rows: Sequence[int]) -> list[str]:
    """The name of each text's group."""
    if missing := sum(not _given(value) for value in values):
        raise ValueError(
            f"{where} is empty in {missing} of {len(values)} rows, expected the group of each: fill it in, or leave "
            "these rows out"
        )
    check_kind(values, where, "groups: strings or integers", rows)
    return [str(value) for value in values]


def numbered(data: Texts, names: Sequence[str] | None = None) -> Texts:
    """Return texts whose groups are numbered: as they are, or in the order of their hash, however the file is sorted.

    Args:
        data: texts.
        names: of each text's group; None for those that it has or, without them, the texts.

    Raises:
        TypeError, ValueError: a text is no string, or no tokenizer takes it; it is numbered. Or there are more texts
            than labels or groups, or fewer.

    >>> numbered(Texts(["a", "b", "a"], [(0,)] * 3, {"kind": ("x",)})).groups
    [1, 0, 1]
    """
    for number, text in enumerate(data.texts):
        check_text(text, f"text {number}")
    groups = data.groups if names is None else names
    if len(data.labels) != len(data.texts) or len(groups) not in (len(data.texts), 0):
        raise ValueError(
            f"got {len(data.texts)} texts, the labels of {len(data.labels)} and the groups of {len(groups)}, expected "
            "labels for each text, and a group for each or for none"
        )
    if names is None and len(data.groups):
        return data
    names = data.texts if names is None else names
    order = sorted(set(names), key=hash_of)
    numbers = {name: number for number, name in enumerate(order)}
    return data._replace(groups=[numbers[name] for name in names], group_names=order)


def hash_of(name: str) -> bytes:
    """A hash of a text, or of the name of a group, that is the same everywhere."""
    return hashlib.sha256(name.encode()).digest()


def _numbered(labels: Sequence[Any], where: str, rows: Sequence[int]) -> tuple[list[int], tuple[str, ...]]:
    """The class of each label, -100 where it is missing or empty, and the names of the classes."""
    given = [(label, row) for label, row in zip(labels, rows, strict=True) if _given(label)]
    numbers, names = as_classes([label for label, _ in given], where, [row for _, row in given])
    found = iter(numbers)
    return [next(found) if _given(label) else IGNORE for label in labels], names


def _given(value: Any) -> bool:
    return value is not None and value != ""
