"""Lines of a text file, numbered, and what no text file can hold: every reader of lines goes through here."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .._schema import is_text

# The longer marks come first: that of UTF-32 begins like that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
MARK = "\ufeff"
LONGEST = 2**26  # characters of a line: a few bytes of a .gz file unpack to a line without end


def numbered_lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, from 1 on.

    Byte order marks are no part of a line, also where files with marks were joined.

    Args:
        path: a text file in UTF-8, in .gz or plain.
        expected: what it should hold, for the error.

    Raises:
        ValueError: it is cut off or damaged, in UTF-16, or holds bytes that are no text or a line of more than
            2**26 characters; the file and line are named.
    """
    number, opener = 0, gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as packed:
            file: Any = packed  # gzip's files are typed as of another kind than plain ones
            head = file.read(4)
            file.seek(0)
            if mark := next((mark for mark in MARKS if head.startswith(mark)), None):
                raise ValueError(f"the file is in {MARKS[mark]}: save it as UTF-8")
            # An escaped byte is a lone surrogate, which no UTF-8 gives otherwise: so its line is known.
            text = io.TextIOWrapper(file, "utf-8", "surrogateescape")
            for number, line in enumerate(iter(partial(text.readline, LONGEST + 1), ""), 1):
                if len(line) > LONGEST and not line.endswith("\n"):
                    raise ValueError(f"it has more than {LONGEST:,} characters: break it up")
                if "\0" in line:
                    raise ValueError("a NUL byte, which no text holds: is the file binary, or in UTF-16?")
                if not is_text(line):
                    line.encode()
                yield number, line.removeprefix(MARK)
    except (ValueError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be read (line {_place(number, error)}), expected {expected}") from error


def _place(number: int, error: Exception) -> str:
    """The line of an error and what it is, in words."""
    if isinstance(error, UnicodeEncodeError):  # of the escaped byte
        return f"{number}: the byte 0x{ord(error.object[error.start]) - 0xDC00:02x} is no UTF-8"
    return f"{number or 1}: {error}" if isinstance(error, ValueError) else f"{number + 1} or later: {error}"


def check_text(value: Any, where: str) -> None:
    """Raise TypeError for what is no string, and ValueError for one that holds half of a surrogate pair.

    Args:
        value: the text.
        where: what it is, such as "text 3".
    """
    if not isinstance(value, str):
        raise TypeError(f"{where} is {value!r} ({type(value).__name__}), expected a string")
    if not is_text(value):
        raise ValueError(
            f"{where} holds half of a surrogate pair, which no tokenizer and no file takes: {value[:60]!r}; repair the "
            "text or leave it out"
        )
