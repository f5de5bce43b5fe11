"""Builds by setup.py: what several tests compile, on any worker, is compiled once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parent.parent


def object_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a folder for objects of one kind, which all workers of a run share and no other run does."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"objects-{name}"
    folder.mkdir(exist_ok=True)
    return folder


def build(objects: Path, *command: str | Path, env: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """Run a command that builds, with its objects in a folder: those that are there and up to date are kept."""
    extra = objects / "setup.cfg"
    with FileLock(objects / "lock"):
        extra.write_text(f"[build_ext]\nbuild_temp = {objects}\n")
        return subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**env, "DIST_EXTRA_CONFIG": str(extra)},
        )
