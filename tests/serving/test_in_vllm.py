"""The plugin in vLLM itself: the tests of `engine/`, run in an environment of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_VLLM = 77


@pytest.mark.nightly
def test_in_vllm() -> None:
    command = ["sh", ".ci/serving.sh", "pytest", "-q", "--confcutdir=.", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": ""})
    if done.returncode == NO_VLLM:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-9000:] + done.stderr[-3000:]
