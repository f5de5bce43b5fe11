"""The tests that need other packages, in a process that has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from extra_packages import environment

HERE = Path(__file__).parent
# each package, and what of its needs this environment lacks; without torch, which they would replace
PACKAGES = {
    "test_transformer_lens.py": (
        *("transformer_lens", "einops", "fancy_einsum", "jaxtyping", "typeguard", "beartype", "wadler_lindig"),
        "sentencepiece",
    ),
    "test_nnsight_and_pyvene.py": (
        *("nnsight", "pyvene", "greenlet", "pydantic", "pydantic_core", "annotated_types", "typing_inspection"),
        *("cloudpickle", "websocket-client", "zstandard"),
    ),
}


PAGE = "../test_docs.py::test_stacks_of_interpretability"


@pytest.mark.nightly
@pytest.mark.parametrize("file", [*PACKAGES, PAGE])
def test_with_the_real_package(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-rs", str(HERE / file)]
    needed = PACKAGES[file] if file in PACKAGES else [name for names in PACKAGES.values() for name in names]
    variables = environment(*needed)
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], env=variables, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-2000:]
