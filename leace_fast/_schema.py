"""What a file must be before any of it is believed: strict JSON, fields of a kind, tensors of a dtype and a shape.

Nothing here allocates more than the text that it is given.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MOST_DEPTH = 64  # of lists and objects inside each other
MOST_INTEGER = 2**63  # integers lie below
MOST_AXIS = 2**24  # of a tensor without numbers, whose axes no byte of the file stands for
# Bytes of a number, by the name that safetensors gives its dtype.
WIDTHS = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8},
}


# ------------------------------------------------------------------------------------------------------------- JSON


def parse_json(data: bytes | str) -> Any:
    """Return what JSON says, if it says one thing only.

    Raises:
        ValueError: it is no JSON in UTF-8, has a key twice, NaN, an integer of more than 64 bits, text that is no
            Unicode, or more than 64 levels; the place is named.

    >>> parse_json(b'{"sizes": [1, 2.5]}')
    {'sizes': [1, 2.5]}
    """
    text = data.decode() if isinstance(data, bytes) else data
    try:
        found = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"lists and objects lie more than {MOST_DEPTH} deep inside each other") from None
    _check_values(found)
    return found


def dump_json(value: Any, **options: Any) -> str:
    """Return JSON that `parse_json` takes.

    Raises:
        ValueError: it would not, as for NaN; the place is named.
    """
    _check_values(value)
    return json.dumps(value, **options)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{short(key)} is given twice")
        found[key] = value
    return found


def _check_values(root: Any) -> None:
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise ValueError(f"lists and objects lie more than {MOST_DEPTH} deep inside each other")
        if isinstance(value, Mapping):
            for key, each in value.items():
                _check_text(place, key)
                waiting.append((f"{place}.{key}" if place else str(key), each, depth + 1))
        elif isinstance(value, (list, tuple)):
            waiting.extend((f"{place}[{number}]", each, depth + 1) for number, each in enumerate(value))
        elif isinstance(value, str):
            _check_text(place, value)
        elif isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{place or 'it'} is NaN, expected a number")
        elif isinstance(value, int) and abs(value) >= MOST_INTEGER:
            raise ValueError(f"{place or 'it'} is an integer of more than 64 bits")


def _check_text(place: str, value: Any) -> None:
    if not is_text(str(value)):
        raise ValueError(f"{place or 'it'} holds half of a character, {ascii(value)[:40]}")


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold a string: JSON and Python allow half of a surrogate pair, tokenizers and files do not.

    >>> is_text("\N{GRINNING FACE}"), is_text("\\ud83d")
    (True, False)
    """
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(value: Any) -> str:
    """Return a value as it is told in an error, on one line of bounded length."""
    return reprlib.repr(value)


# ----------------------------------------------------------------------------------------------------------- fields


@dataclass(frozen=True)
class Field:
    """A kind of value: what errors say of it, and the test."""

    says: str
    fits: Callable[[Any], bool]

    def __or__(self, other: Field) -> Field:
        return Field(f"{self.says} or {other.says}", lambda value: self.fits(value) or other.fits(value))

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError, naming the field, unless the value is of this kind."""
        if not self.fits(value):
            raise ValueError(f"{name} is {short(value)}, expected {self.says}")


def _is(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def integer(least: int) -> Field:
    """Integers from `least` on; a boolean is none."""
    return Field(f"an integer of at least {least}", lambda v: _is(v, int) and least <= v < MOST_INTEGER)


def one_of(*values: Any) -> Field:
    """One of some values, of its type."""
    return Field(f"one of {values}", lambda v: any(type(v) is type(each) and v == each for each in values))


def list_of(item: Field) -> Field:
    """A list of values of a kind."""
    return Field(f"a list of {item.says}", lambda v: isinstance(v, (list, tuple)) and all(map(item.fits, v)))


def row_of(*items: Field) -> Field:
    """A list of one value of each kind."""
    says = ", ".join(item.says for item in items)
    return Field(
        f"a list of {says}",
        lambda v: (
            isinstance(v, (list, tuple))
            and len(v) == len(items)
            and all(item.fits(each) for item, each in zip(items, v, strict=True))
        ),
    )


def object_of(item: Field) -> Field:
    """An object whose values are of a kind."""
    return Field(f"an object of {item.says}", lambda v: isinstance(v, dict) and all(map(item.fits, v.values())))


NOTHING = Field("null", lambda v: v is None)
BOOLEAN = Field("true or false", lambda v: isinstance(v, bool))
TEXT = Field("a string", lambda v: isinstance(v, str))
NUMBER = Field("a number", lambda v: _is(v, int, float) and not math.isnan(v))
FINITE = Field("a finite number of 0 or more", lambda v: NUMBER.fits(v) and 0 <= v < math.inf)
OBJECT = Field("an object", lambda v: isinstance(v, dict))
ANYTHING = Field("anything", lambda v: True)
DIGEST = Field("64 hexadecimal digits", lambda v: isinstance(v, str) and len(v) == 64 and set(v) <= HEXADECIMAL)
HEXADECIMAL = frozenset("0123456789abcdef")


def check_fields(values: Any, fields: Mapping[str, Field], optional: Sequence[str] = ()) -> None:
    """Raise ValueError, naming the field, unless an object holds values of these kinds under these names.

    >>> check_fields({"dim": True}, {"dim": integer(1)})
    Traceback (most recent call last):
    ValueError: dim is True, expected an integer of at least 1
    """
    OBJECT.check("it", values)
    for name, kind in fields.items():
        if name in values:
            kind.check(name, values[name])
        elif name not in optional:
            raise ValueError(f"{name} is missing, expected {kind.says}")


# ---------------------------------------------------------------------------------------------------------- tensors


class Layout(NamedTuple):
    """The dtype of a tensor in a file, by its name there, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def layouts_of(entries: Mapping[str, Any], size: int) -> dict[str, Layout]:
    """Return the layouts that the header of a safetensors file tells, which must fill its other bytes without a gap.

    Args:
        entries: by the name of the tensor.
        size: bytes that follow the header.

    Raises:
        ValueError: an entry is malformed, or the tensors overlap, leave a gap or need other bytes than there are.
    """
    found: dict[str, Layout] = {}
    places: list[tuple[int, int, str]] = []
    axes, offsets = list_of(integer(0)), row_of(integer(0), integer(0))
    for name, entry in entries.items():
        try:
            check_fields(entry, {"dtype": one_of(*WIDTHS), "shape": axes, "data_offsets": offsets})
        except ValueError as error:
            raise ValueError(f"of the tensor {short(name)}, {error}") from None
        found[name] = Layout(entry["dtype"], tuple(entry["shape"]))
        begin, end = entry["data_offsets"]
        numbers = math.prod(found[name].shape)
        if not numbers and max(found[name].shape) > MOST_AXIS:
            raise ValueError(f"{name} has shape {short(found[name].shape)} and holds no number")
        if end - begin != numbers * WIDTHS[entry["dtype"]]:
            raise ValueError(f"{name} has {end - begin} bytes, which its dtype and shape do not fit")
        places.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            raise ValueError(f"{name} begins at byte {begin}, expected {at}")
        at = end
    if at != size:
        raise ValueError(f"its tensors have {at} bytes, after its header come {size}")
    return found


Expected = Mapping[str, tuple[tuple[str, ...], tuple[int | str, ...]]]


def check_layouts(
    found: Mapping[str, Layout],
    expected: Expected,
    sizes: Mapping[str, int] | None = None,
    optional: Sequence[str] = (),
) -> dict[str, int]:
    """Hold tensors against the dtypes and shapes that are expected, and return the sizes of the named axes.

    Args:
        found: as `layouts_of`.
        expected: dtypes, and axes by their size or by a name, which stands for one size in all tensors.
        sizes: of axes by name, as far as they are known.
        optional: tensors that may be absent.

    Raises:
        ValueError: a tensor is missing, unknown, or of another dtype or shape; it is named.

    >>> check_layouts({"left": Layout("F32", (4, 2))}, {"left": (("F32", "F64"), ("d", "k"))})
    {'d': 4, 'k': 2}
    """
    bound = dict(sizes or {})
    if unknown := set(found) - set(expected):
        raise ValueError(f"the tensor {short(min(unknown))} is none of {', '.join(expected)}")
    for name, (dtypes, axes) in expected.items():
        if name not in found:
            if name in optional:
                continue
            raise ValueError(f"the tensor {name} is missing")
        dtype, shape = found[name]
        if dtype not in dtypes:
            raise ValueError(f"{name} has dtype {dtype}, expected {' or '.join(dtypes)}")
        wanted = [bound.get(axis, size) if isinstance(axis, str) else axis for axis, size in _paired(axes, shape)]
        if list(shape) != wanted:
            said = ", ".join(str(bound.get(axis, axis)) if isinstance(axis, str) else str(axis) for axis in axes)
            raise ValueError(f"{name} has shape {short(shape)}, expected ({said})")
        for axis, size in _paired(axes, shape):
            if isinstance(axis, str) and bound.setdefault(axis, size) != size:
                raise ValueError(f"{name} has shape {short(shape)}, expected equal sizes of {axis}")
    return bound


def _paired(axes: Sequence[int | str], shape: Sequence[int]) -> Iterator[tuple[int | str, int]]:
    """Yield each axis with the size that was found, -1 where there is none."""
    for number, axis in enumerate(axes):
        yield axis, shape[number] if number < len(shape) else -1


# ------------------------------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class Schema:
    """What a file of one kind holds.

    Attributes:
        fields: of its header.
        tensors: alternatives, as `check_layouts` takes them, of which one must fit.
        optional: tensors and fields that may be absent.
        filled: named axes that may not be of size 0.
        in_header: named axes whose size is the field of that name.
    """

    fields: Mapping[str, Field]
    tensors: Sequence[Expected]
    optional: Sequence[str] = ()
    filled: Sequence[str] = ()
    in_header: Sequence[str] = ()

    def check(self, header: Mapping[str, Any], layouts: Mapping[str, Layout]) -> None:
        """Raise ValueError, naming field or tensor, unless a header and tensors are of this kind."""
        check_fields(header, self.fields, self.optional)
        known = {name: header[name] for name in self.in_header}
        sizes: dict[str, int] = {}
        for expected in self.tensors:
            try:
                sizes = check_layouts(layouts, expected, known, self.optional)
                break
            except ValueError:
                if expected is self.tensors[-1]:
                    raise
        if empty := [name for name in self.filled if not sizes.get(name, 1)]:
            raise ValueError(f"the axis {empty[0]} has size 0, expected at least 1")
