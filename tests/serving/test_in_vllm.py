"""The plugin in vLLM itself: the tests of `engine/`, run in an environment of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from nightly import PART

ROOT = Path(__file__).parents[2]
NO_VLLM = 77
# What a change to the plugin runs: erased by request in one process, and through a server.
SOME = ["test_engine.py", "test_http.py", "-k", "eager and (every_request or by_request) or test_http"]


LONG = pytest.mark.skipif(os.environ.get(PART) != "all", reason=f"takes half an hour: with {PART}=all")


@pytest.mark.nightly
@pytest.mark.parametrize("tests", [pytest.param(SOME, id="some"), pytest.param(["."], id="all", marks=LONG)])
def test_in_vllm(tests: list[str]) -> None:
    command = ["sh", ".ci/serving.sh", "pytest", "-q", "-o", "addopts=", "--confcutdir=.", *tests]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": ""})
    if done.returncode == NO_VLLM:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-9000:] + done.stderr[-3000:]
