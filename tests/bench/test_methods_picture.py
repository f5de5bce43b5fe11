"""The picture of docs/methods.md: help is help, and a picture is written where it was asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "bench" / "methods_picture.py"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, str(script), *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_help_writes_no_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    done = run(tmp_path, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    assert not (tmp_path / "--help").exists()
    assert run(tmp_path, "--nope").returncode == 2


def test_a_picture_is_written_to_the_path(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    pytest.importorskip("datasketches")
    done = run(tmp_path, "picture.png")
    assert done.returncode == 0 and "written: picture.png" in done.stdout, done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
