"""Packages that few tests need, put beside the environment for a process of its own; or why they are not there."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest


@functools.cache
def path_of(*packages: str, alone: bool = True) -> str:
    """Return what PYTHONPATH has to begin with for these packages to be found; skips where they cannot be installed.

    Nothing of the environment changes.

    Args:
        packages: as pip knows them.
        alone: whether they are installed without what they need in turn.
    """
    if all(importlib.util.find_spec(name.replace("-", "_")) for name in packages):
        return ""
    name = f"{packages[0]}-{zlib.crc32(repr(packages).encode()):08x}"
    folder = Path(tempfile.gettempdir()) / f"leace-fast-extras-{os.getuid()}" / name
    if not folder.is_dir():
        fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(fresh), *packages]
        command += ["--no-deps"] if alone else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{', '.join(packages)} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
        fresh.rename(folder)
    return str(folder)


def environment(*packages: str, alone: bool = True) -> dict[str, str]:
    """Return the variables of a process that has these packages, and finds this package and the tests."""
    here = Path(__file__).parent
    places = [path_of(*packages, alone=alone), str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"}
