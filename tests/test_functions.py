"""Functions stay short and flat; one that cannot says why in a comment that begins with "In one piece:"."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_BRANCHES = 60, 15
REASON = "# In one piece:"
BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.match_case)
FILES = [
    *(path for path in sorted(ROOT.glob("leace_fast/**/*.py")) if "triton_kernels" not in path.parts),
    *(path for folder in ("triton_kernels", "bench", ".ci") for path in sorted((ROOT / folder).rglob("*.py"))),
    ROOT / "setup.py",
]


def size(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int]:
    """Return lines, without the docstring, and branches: each condition, loop and `and` or `or` counts."""
    assert function.end_lineno
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function):
        text = function.body[0]
        assert text.end_lineno
        lines -= text.end_lineno - text.lineno + 1
    branches = sum(isinstance(node, BRANCHES) for node in ast.walk(function))
    return lines, branches + sum(len(n.values) - 1 for n in ast.walk(function) if isinstance(n, ast.BoolOp))


def too_large(source: str) -> Iterator[str]:
    """Yield the functions of a source that are too large and give no reason."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length, branches = size(node)
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            text = "\n".join(lines[max(first - 2, 0) : node.end_lineno])  # and the line above
            if (length > MOST_LINES or branches > MOST_BRANCHES) and REASON not in text:
                yield f"{node.name} (line {node.lineno}): {length} lines, {branches} branches"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_or_say_why(path: Path) -> None:
    assert not list(too_large(path.read_text(encoding="utf-8"))), f"split it, or say why after {REASON!r}"


def test_a_long_function_is_seen() -> None:
    long = "def f():\n" + "    x = 1\n" * MOST_LINES
    nested = "def g(x):\n    return " + " or ".join(["x"] * (MOST_BRANCHES + 2)) + "\n"
    assert len(list(too_large(long + nested))) == 2
    assert not list(too_large(long.replace("    x = 1", f"    {REASON} a reason", 1)))
