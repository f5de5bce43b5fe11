"""The command line run in this process, and labelled texts for it."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from leace_fast.cli import app

WORDS = {"fruit": "apple pear plum cherry quince", "tool": "hammer saw chisel pliers drill"}
RUNNER = CliRunner()


def run(*arguments: Any) -> Any:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def texts(count: int) -> list[dict[str, str]]:
    rows = []
    for i in range(count):
        kind = ("fruit", "tool")[i % 2]
        words = WORDS[kind].split()
        rows.append({"body": " ".join(words[(i + j * (1 + i // 2)) % 5] for j in range(9)) + f" {i}", "kind": kind})
    return rows
