"""Columns of labels, numbered as classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_CLASSES = 1000  # more distinct labels than this are taken for identifiers or numbers


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
