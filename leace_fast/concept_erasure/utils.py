"""Small helpers that the package `concept-erasure` exports."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def assert_type(typ: type[T], obj: Any) -> T:
    """Return an object of the type that is expected.

    Raises:
        TypeError: it is of another type.

    >>> assert_type(int, 3)
    3
    """
    if not isinstance(obj, typ):
        raise TypeError(f"Expected {typ.__name__}, got {type(obj).__name__}")
    return obj


def mangle_module_path(name: str) -> str:
    """Return the name of a module with dots as dashes, the key of its eraser in a `ConceptScrubber`.

    Raises:
        ValueError: the name holds a dash already.
    """
    if "-" in name:
        raise ValueError(f"the name of a module holds a dash, which stands for a dot: {name!r}")
    return name.replace(".", "-")
