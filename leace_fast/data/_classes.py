"""Columns of labels, numbered as classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_CLASSES = 1000  # more distinct labels than this are taken for identifiers or numbers


def as_classes(
    values: Sequence[Any], where: str, rows: Sequence[int] | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """Number the distinct values of a label column in sorted order and return (classes, names).

    Args:
        values: the labels.
        where: of what they are, for errors.
        rows: the number of each one's row, for errors.

    Raises:
        ValueError: values are no classes (fractions, lists, too many), of mixed types, or only one class.

    >>> as_classes(["no", "yes", "no"], "column 'label'")
    ([0, 1, 0], ('no', 'yes'))
    """
    check_kind(values, where, "classes: strings, integers or booleans", rows)
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


def check_kind(values: Sequence[Any], where: str, expected: str, rows: Sequence[int] | None = None) -> None:
    """Raise ValueError for values that are no names or numbers of something, or that are of several types.

    Args:
        values: labels or groups.
        where, rows: as in `as_classes`.
        expected: what they should be.
    """
    first: dict[type, int] = {}  # the place of the first value of each type
    for place, value in enumerate(values):
        if not isinstance(value, (str, int)):
            told = "" if rows is None else f" (row {rows[place]})"
            raise ValueError(f"{where} holds {value!r} ({type(value).__name__}), expected {expected}{told}")
        first.setdefault(type(value), place)
    if len(first) > 1:
        kinds = sorted((kind.__name__, place) for kind, place in first.items())
        told = [name if rows is None else f"{name} (row {rows[place]})" for name, place in kinds]
        raise ValueError(f"{where} mixes {' and '.join(told)}, expected one type")
