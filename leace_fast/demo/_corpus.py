"""The demo's data: Python's standard library, split by module, with the lexical category of every character.

The library is the one installed with the running interpreter. A module is held
out when a hash of its name says so, which depends on nothing else and so never
changes; its tests follow it, and training files that repeat it are dropped.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import keyword
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data import Source

CATEGORIES = ("keyword", "name", "operator", "string", "number", "comment")
LETTERS = "knosdc"  # one letter a category, in the order of CATEGORIES
BLANK = "."  # white space and line structure: no category

# Tables written by programs, and packages that the library itself deprecates: they flatter the figure.
GENERATED = ("encodings", "pydoc_data", "lib2to3", "distutils")
SKIPPED_FOLDERS = ("site-packages", "__pycache__", "lib2to3_tests", "test_lib2to3", "test_distutils", "data")
HELD_OUT_SHARE = 0.08
REPEATED_SHARE = 0.2
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, its text, and one category letter for each character."""

    name: str
    text: str
    labels: str = ""


def category(kind: int, text: str) -> str:
    """Return the letter of one token of `tokenize`, or `BLANK` where it has no category."""
    if kind == tokenize.NAME:
        return "k" if keyword.iskeyword(text) else "n"
    name = tokenize.tok_name[kind]
    if name.startswith("FSTRING"):
        return "s"
    return {"OP": "o", "STRING": "s", "NUMBER": "d", "COMMENT": "c"}.get(name, BLANK)


def label_characters(text: str) -> str:
    """Return a string of `len(text)` letters: the lexical category of each character.

    Raises `tokenize.TokenError`, `SyntaxError` or `IndentationError` where the text is not Python.

    >>> label_characters("if x: y = 'é'  # no")
    'kk.no.n.o.sss..cccc'
    """
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    letters = [BLANK] * len(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        letter = category(token.type, token.string)
        if letter == BLANK:
            continue
        start = starts[token.start[0] - 1] + token.start[1]
        end = starts[token.end[0] - 1] + token.end[1]
        letters[start:end] = letter * (end - start)
    return "".join(letters)


def library_modules() -> Iterator[Module]:
    """Yield every source file of the installed standard library, tests included, in order of name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in GENERATED or any(part in SKIPPED_FOLDERS for part in parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) >= 200 and "\f" not in text and "\r" not in text:
            yield Module(".".join(parts), text)


def is_test(name: str) -> bool:
    """Tell whether a module belongs to a test suite."""
    return any(part in ("test", "tests", "idle_test") or part.startswith("test_") for part in name.split("."))


def is_held_out(name: str) -> bool:
    """Tell whether a module is held out, by a hash of the last part of its name without `test_`."""
    parts = name.removesuffix(".__init__").removesuffix(".__main__").split(".")
    stem = parts[-1].removeprefix("test_").strip("_")
    digest = hashlib.sha256(stem.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_SHARE


def shingles(text: str) -> set[int]:
    """Return hashes of each three successive lines that hold something."""
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 3]
    return {hash(tuple(lines[i : i + 3])) for i in range(max(len(lines) - 2, 1))}


def split_library() -> tuple[list[Module], list[Module]]:
    """Return (training files, held-out modules): no test is held out, nothing held out is repeated in training."""
    modules = list(library_modules())
    held_out: list[Module] = []
    seen: set[int] = set()
    for module in modules:
        if not is_held_out(module.name) or is_test(module.name):
            continue
        own = shingles(module.text)
        if len(own & seen) <= REPEATED_SHARE * len(own):
            held_out.append(module)
            seen |= own
    train = []
    for module in modules:
        own = shingles(module.text)
        if not is_held_out(module.name) and len(own & seen) <= REPEATED_SHARE * len(own):
            train.append(module)
    return train, held_out


def save_modules(modules: list[Module], path: Path) -> None:
    """Write modules with the labels of their characters, one JSON object a line, compressed."""
    lines = [
        json.dumps({"module": m.name, "text": m.text, "labels": m.labels or label_characters(m.text)}) for m in modules
    ]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def load_modules(path: Path) -> list[Module]:
    """Read what `save_modules` wrote.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    modules = []
    for number, row in enumerate(Source(path), 1):
        module = [row.get(name) for name in ("module", "text", "labels")]
        name, text, labels = (value if isinstance(value, str) else "" for value in module)
        if not name or not text or len(text) != len(labels) or not set(labels) <= {*LETTERS, BLANK}:
            raise ValueError(
                f"row {number} of {path} is no module: expected the strings module, text and labels, with one of "
                f"{LETTERS}{BLANK} for each character"
            )
        modules.append(Module(name, text, labels))
    if not modules:
        raise ValueError(f"{path} holds no module, expected the demo's texts")
    return modules
