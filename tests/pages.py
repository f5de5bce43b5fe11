"""The pages of the documentation, their blocks of code, and how a command in them is run."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```([a-z]+)([^\n]*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def pages() -> list[Path]:
    """The README, and every page of docs/."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def name(page: Path) -> str:
    """A page's name, as in a test's id."""
    return str(page.relative_to(ROOT))


def blocks(page: str, language: str = "python") -> list[str]:
    """The blocks of one language of a page of docs/, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [code for found, _, code in BLOCK.findall(text) if found == language]


def commands(page: str | Path) -> Iterator[list[str]]:
    """The lines of a page's shell blocks as words, without comments."""
    for line in "".join(blocks(str(page), "sh")).splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What links may name in a page: its headings, as GitHub and the site call them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run_command(words: list[str]) -> str:
    """Run a `leace-fast` command in this process, and return what it prints; a failure shows its output."""
    from leace_fast.cli import app

    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"
    return result.output


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
