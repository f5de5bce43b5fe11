"""The Triton kernels under Triton's interpreter, which is chosen before they are imported: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

FOLDER, TESTS = Path(__file__).parent / "interpreted", Path(__file__).parents[1]


def run(file: Path, *options: str) -> None:
    """Run the checks of a file; what they say is shown where one fails."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "interpreter", str(file)),
        *options,
    ]
    command += ["-o", "python_files=check_*.py", "-o", "python_functions=check_*"]
    paths = os.pathsep.join(
        [str(TESTS), str(TESTS.parent / "bench" / "gpu"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "1"}
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("file", sorted(FOLDER.glob("check_*.py")), ids=lambda file: file.stem)
def test_interpreted(file: Path) -> None:
    run(file, "-m", "not slow")


LONG = [file for file in sorted(FOLDER.glob("check_*.py")) if "mark.slow" in file.read_text(encoding="utf-8")]


@pytest.mark.nightly
@pytest.mark.parametrize("file", LONG, ids=lambda file: file.stem)
def test_interpreted_at_length(file: Path) -> None:
    run(file, "-m", "slow")
