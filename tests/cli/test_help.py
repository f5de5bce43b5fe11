"""`--help`: it names the commands, and each ends with examples that run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_demo
import typer
from command_line import run, texts

import leace_fast
from leace_fast.cli import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def examples(name: str) -> list[str]:
    return [line for line in COMMANDS[name].epilog.split("\n\n") if line.startswith("leace-fast ")]


EXAMPLES = [example for name in COMMANDS for example in examples(name)]


def test_help_names_the_commands():
    result = run("--help")
    assert result.exit_code == 0
    assert set(COMMANDS) == {
        "demo",
        "fit",
        "scrub",
        "eval",
        "fold",
        "export-lora",
        "gguf",
        "inspect",
        "serve-check",
        "doctor",
    }
    assert all(command in result.output for command in COMMANDS)
    assert all(command in run().output for command in COMMANDS), "no argument asks for help"


def test_the_version_is_shown_and_the_module_runs():
    assert run("--version").output.split() == ["leace-fast", leace_fast.__version__]
    done = subprocess.run([sys.executable, "-m", "leace_fast", "--version"], capture_output=True, text=True)
    assert done.stdout.split() == ["leace-fast", leace_fast.__version__] and done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line.strip() for line in run(name, "--help").output.splitlines() if line.strip()]
    assert examples(name) and lines[-len(examples(name)) :] == examples(name)
    assert all(shlex.split(example)[1] == name for example in examples(name))


@pytest.fixture(scope="session")
def place(workplace, tmp_path_factory) -> Path:
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    rows = [
        {"text": row["body"], "label": row["kind"], "author": f"author {i // 2 % 10}"}
        for i, row in enumerate(texts(60))
    ]
    (folder / "ordinary.txt").write_text("".join(f"an ordinary text, number {i}\n" for i in range(20)))
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copy(workplace / "shards" / "0.npz", folder / "activations.npz")
    tiny_demo.write_assets(folder / "assets")
    return folder


@pytest.fixture(scope="session")
def erasers(workplace, place) -> None:
    for options in (("--out", place / "erasers"), ("--groups", "author", "--out", place / "by-author")):
        result = run("scrub", workplace / "with_biases", "--data", place / "texts.jsonl", *options)
        assert result.exit_code == 0, result.output
    llama, adapter = ("--erasers", place / "llama-erasers"), ("--max-cost-ratio", 99, "--out", place / "llama-adapter")
    for command in (
        ("scrub", workplace / "model", "--data", place / "texts.jsonl", "--out", place / "llama-erasers"),
        ("export-lora", workplace / "model", *llama, *adapter),
    ):
        result = run(*command)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.usefixtures("erasers")
def test_examples_run(example, workplace, place, monkeypatch):
    monkeypatch.chdir(place)
    _, command, *arguments = shlex.split(example)
    model = str(workplace / ("model" if command == "gguf" else "with_biases"))
    arguments = [model if re.fullmatch(r"[\w-]+/[\w.-]+", argument) else argument for argument in arguments]
    result = run(command, *arguments, *(["--assets", "assets"] if command == "demo" else []))
    if command == "serve-check":  # no server runs here; tests/serving has some
        assert result.exit_code == 2 and "no server answers at http://localhost:8000" in result.output
        return
    assert result.exit_code == 0, result.output
    if "--out" in arguments:
        out = place / arguments[arguments.index("--out") + 1]
        assert out.is_file() or any(out.iterdir())
