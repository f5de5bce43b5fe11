"""Texts with columns of labels: read from a file, and split into those to fit on and those held out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..statistics import IGNORE
from ._classes import as_classes
from ._rows import read_rows, rows_file


class Texts(NamedTuple):
    """Texts with the classes of each, one for each concept.

    Attributes:
        texts: the texts.
        labels: the classes of each text, in the order of the concepts; -100 where it has none.
        class_names: by concept, the names of its classes as they stood in the file.
    """

    texts: list[str]
    labels: list[tuple[int, ...]]
    class_names: dict[str, tuple[str, ...]]


def read_texts(path: str | os.PathLike[str], text: str = "text", label: str | Sequence[str] = "label") -> Texts:
    r"""Read a column of texts and one or several columns of labels from a .jsonl, .jsonl.gz or .parquet file.

    Labels may be strings, integers or booleans; the classes of each column are numbered in sorted order. Rows whose
    text is missing or empty, or all of whose labels are, are left out.

    Args:
        path: the file.
        text: the column of texts.
        label: the column of labels, or several, one for each concept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or lacks a column, its texts are no strings, its labels are not classes, or
            no column of labels is named, or one twice.
        ImportError: a .parquet file needs pyarrow.

    >>> import tempfile
    >>> from pathlib import Path
    >>> rows = '{"text": "hot", "label": "warm"}\n{"text": "icy", "label": "cold"}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "texts.jsonl").write_text(rows)
    ...     read_texts(Path(folder, "texts.jsonl"))
    Texts(texts=['hot', 'icy'], labels=[(1,), (0,)], class_names={'label': ('cold', 'warm')})
    """
    columns = [label] if isinstance(label, str) else list(label)
    if not columns or len(set(columns)) < len(columns):
        named = f"{', '.join(map(repr, columns)) or 'none'}"
        raise ValueError(f"the columns of labels are {named}, expected one or several, each once: name them by --label")
    path = rows_file(path, "texts with labels")
    needed = {text: "name one with --text", **{name: "name one with --label" for name in columns if name != text}}
    rows = ((row[text], *(row[column] for column in columns)) for row in read_rows(path, needed))
    kept = [row for row in rows if _given(row[0]) and any(map(_given, row[1:]))]
    for value, *_ in kept:
        if not isinstance(value, str):
            raise ValueError(f"column {text!r} of {path} holds {value!r}, expected strings: name another with --text")
    classes, names = [], {}
    for place, column in enumerate(columns, 1):
        numbers, names[column] = _numbered([row[place] for row in kept], f"column {column!r} of {path}")
        classes.append(numbers)
    return Texts([row[0] for row in kept], list(zip(*classes, strict=True)), names)


def _numbered(labels: Sequence[Any], where: str) -> tuple[list[int], tuple[str, ...]]:
    """The class of each label, -100 where it is missing or empty, and the names of the classes."""
    numbers, names = as_classes([label for label in labels if _given(label)], where)
    found = iter(numbers)
    return [next(found) if _given(label) else IGNORE for label in labels], names


def _given(value: Any) -> bool:
    return value is not None and value != ""


def split_texts(data: Texts, held_out: float = 0.3) -> tuple[Texts, Texts]:
    """Split into (fit, held out): in each class, the texts whose hash comes first are held out.

    What is held out for one concept is held out for all. Copies of one text fall on one side. The order of both parts
    is that of the hash.

    Args:
        data: as of `read_texts`.
        held_out: share of the distinct texts of each class to hold out, 0 to 1; one of them at least.

    Raises:
        ValueError: a class has fewer than two distinct texts, or none to fit on.

    >>> fit, test = split_texts(Texts(["a", "b", "c", "d"], [(0,), (0,), (1,), (1,)], {"kind": ("x", "y")}))
    >>> fit.labels, test.labels
    ([(1,), (0,)], [(1,), (0,)])
    """
    rows = sorted(zip(data.texts, data.labels, strict=True), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    classes = [
        (place, index, f"{name!r} of {concept!r}")
        for place, (concept, names) in enumerate(data.class_names.items())
        for index, name in enumerate(names)
    ]
    test_texts: set[str] = set()
    for place, index, name in classes:
        distinct = list(dict.fromkeys(text for text, labels in rows if labels[place] == index))
        if len(distinct) < 2:
            raise ValueError(
                f"the class {name} has {len(distinct)} distinct text, expected 2 or more: one to fit on, one held out"
            )
        test_texts.update(distinct[: max(1, round(held_out * len(distinct)))])
    parts = [[row for row in rows if (row[0] in test_texts) == side] for side in (False, True)]
    fit, test = (Texts([a for a, _ in part], [b for _, b in part], data.class_names) for part in parts)
    left = {pair for labels in fit.labels for pair in enumerate(labels)}
    if missing := [name for place, index, name in classes if (place, index) not in left]:
        raise ValueError(
            f"all texts of {', '.join(missing)} also bear other labels, for which they are held out, expected texts of "
            "its own in each class"
        )
    return fit, test
