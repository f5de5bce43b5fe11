"""Texts with columns of labels, cut into windows and batches for a language model."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
MOST_CLASSES = 1000  # more distinct labels than this are taken for identifiers or numbers
NO_CLASS = -100


class Texts(NamedTuple):
    """Texts, the classes of each, one for each concept, and the classes' names as they stood in the file."""

    texts: list[str]
    labels: list[tuple[int, ...]]  # -100 where a text has no class of a concept
    class_names: dict[str, tuple[str, ...]]  # by concept


class Window(NamedTuple):
    """A piece of one text that is scored with the context before it."""

    input_ids: Tensor  # (length,) int64
    scored: int  # only the last `scored` tokens count; those before are context
    concept_labels: Tensor  # (length,) or (length, concepts) int64 class of each token, -100 where it has none


def read_texts(path: str | os.PathLike[str], text: str = "text", label: str | Sequence[str] = "label") -> Texts:
    """Read a column of texts and one or several columns of labels from a .jsonl, .jsonl.gz or .parquet file.

    Labels may be strings, integers or booleans; the classes of each column are numbered in sorted order. Rows whose
    text is missing or empty, or all of whose labels are, are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, lacks a column, or its labels are not classes.
    """
    path = Path(path)
    columns = [label] if isinstance(label, str) else list(label)
    if not columns or len(set(columns)) < len(columns):
        named = f"{', '.join(map(repr, columns)) or 'none'}"
        raise ValueError(f"the columns of labels are {named}, expected one or several, each once: name them by --label")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, expected texts with labels: {', '.join(TEXT_SUFFIXES)}")
    if path.name.endswith(".parquet"):
        rows = _read_parquet(path, text, columns)
    elif path.name.endswith(TEXT_SUFFIXES):
        rows = _read_json_lines(path, text, columns)
    else:
        raise ValueError(f"{path} is of an unknown kind, expected one of {', '.join(TEXT_SUFFIXES)}")
    kept = [row for row in rows if _given(row[0]) and any(map(_given, row[1:]))]
    for value, *_ in kept:
        if not isinstance(value, str):
            raise ValueError(f"column {text!r} of {path} holds {value!r}, expected strings: name another with --text")
    classes, names = [], {}
    for place, column in enumerate(columns, 1):
        numbers, names[column] = as_classes(
            [row[place] for row in kept if _given(row[place])], f"column {column!r} of {path}"
        )
        found = iter(numbers)
        classes.append([next(found) if _given(row[place]) else NO_CLASS for row in kept])
    return Texts([row[0] for row in kept], list(zip(*classes, strict=True)), names)


def _given(value: Any) -> bool:
    return value is not None and value != ""


def as_classes(values: Sequence[Any], where: str) -> tuple[list[int], tuple[str, ...]]:
    """Number the distinct values of a label column in sorted order and return (classes, names).

    Raises:
        ValueError: values are no classes (fractions, lists, too many), of mixed types, or only one class.

    >>> as_classes(["no", "yes", "no"], "column 'label'")
    ([0, 1, 0], ('no', 'yes'))
    """
    kinds = {type(value) for value in values}
    for value in values:
        if not isinstance(value, (str, int)):
            raise ValueError(
                f"{where} holds {value!r} ({type(value).__name__}), expected classes: strings, integers or booleans"
            )
    if len(kinds) > 1:
        raise ValueError(f"{where} mixes {' and '.join(sorted(kind.__name__ for kind in kinds))}, expected one type")
    classes = sorted(set(values))
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no labels"
        raise ValueError(f"{where} holds {found}, expected at least two classes: there is no concept to erase")
    if len(classes) > MOST_CLASSES:
        raise ValueError(
            f"{where} holds {len(classes)} distinct values, expected at most {MOST_CLASSES} classes: "
            "is it an identifier or a number?"
        )
    index = {value: i for i, value in enumerate(classes)}
    return [index[value] for value in values], tuple(str(value) for value in classes)


def split_texts(data: Texts, held_out: float = 0.3) -> tuple[Texts, Texts]:
    """Split into (fit, held out): in each class, the texts whose hash comes first are held out.

    What is held out for one concept is held out for all. Copies of one text fall on one side. The order of both parts
    is that of the hash.

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


def text_windows(
    data: Texts,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    max_tokens: int | None = None,
    last_token: bool = False,
) -> tuple[list[Window], int]:
    """Cut whole texts into windows of at most `length` tokens and return them with the bytes of text they score.

    Each token bears its text's classes, or the last one alone. From a text's second window on, one token
    of context comes first, so that each token is scored once. Texts are taken
    in order until the next one would pass `max_tokens` (at least one is).
    """
    start = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    windows: list[Window] = []
    total = text_bytes = 0
    for text, labels in zip(data.texts, data.labels, strict=True):
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if max_tokens is not None and windows and total + len(tokens) > max_tokens:
            break
        total += len(tokens)
        text_bytes += len(text.encode())
        if start is None and tokens:  # nothing comes before the first token: it is context, not scored
            text_bytes -= len(str(tokenizer.decode(tokens[:1])).encode())
        ids = torch.tensor(tokens if start is None else [start, *tokens], dtype=torch.int64)
        done = 1
        while done < len(ids):
            piece = ids[done - 1 : done - 1 + length]
            classes = torch.tensor(labels).repeat(len(piece), 1)
            done += len(piece) - 1
            if last_token:
                classes[: -1 if done == len(ids) else None] = NO_CLASS
            windows.append(Window(piece, len(piece) - 1, classes))
    return windows, text_bytes


def batched(items: Sequence[Window], size: int, pad: int) -> Iterator[dict[str, Tensor]]:
    """Yield padded batches of windows, those of like length together.

    Keys: `input_ids`, `attention_mask`, `concept_labels` and `labels` (-100
    where a token is context or padding), each (batch, length) int64; where
    windows have several concepts, their labels have an axis of these more.
    """
    order = sorted(range(len(items)), key=lambda i: -len(items[i].input_ids))
    for at in range(0, len(order), size):
        chunk = [items[i] for i in order[at : at + size]]
        shape = (len(chunk), max(len(item.input_ids) for item in chunk))
        batch = {
            "input_ids": torch.full(shape, pad),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, -100),
            "concept_labels": torch.full((*shape, *chunk[0].concept_labels.shape[1:]), NO_CLASS),
        }
        for row, item in enumerate(chunk):
            n = len(item.input_ids)
            batch["input_ids"][row, :n] = item.input_ids
            batch["attention_mask"][row, :n] = 1
            batch["labels"][row, n - item.scored : n] = item.input_ids[n - item.scored :]
            batch["concept_labels"][row, n - item.scored : n] = item.concept_labels[n - item.scored :]
        yield batch


def _read_json_lines(path: Path, text: str, labels: Sequence[str]) -> list[tuple[Any, ...]]:
    rows = []
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} of {path} is no JSON ({error}), expected an object") from None
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} of {path} is no object, expected one object a line")
                for column in (text, *labels):
                    if column not in row:
                        option = "--text" if column == text else "--label"
                        raise ValueError(_missing(column, row, option, f"line {number} of {path}"))
                rows.append((row[text], *(row[label] for label in labels)))
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}), expected JSON lines in UTF-8") from error
    return rows


def _read_parquet(path: Path, text: str, labels: Sequence[str]) -> list[tuple[Any, ...]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'leace-fast[hf]'") from error
    try:
        file = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read ({error}), expected a parquet file") from error
    with file:
        for column in (text, *labels):
            if column not in file.schema_arrow.names:
                option = "--text" if column == text else "--label"
                raise ValueError(_missing(column, file.schema_arrow.names, option, str(path)))
        table = file.read([text, *labels])
    return list(zip(*(table[column].to_pylist() for column in (text, *labels)), strict=True))


def _missing(column: str, present: Any, option: str, where: str) -> str:
    columns = ", ".join(repr(name) for name in present) or "none"
    return f"{where} has no column {column!r}; its columns: {columns}; name one with {option}"
