"""The worked example of CONTRIBUTING.md, for real: added to a copy of the package, it works and obeys the laws."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from laws import ERASER_LAWS

from leace_fast.methods import METHODS

ROOT = Path(__file__).parents[2]
# What the copy needs beside the package: the laws, and the page with the bench that writes its table.
FILES = [
    "pyproject.toml",
    "docs/methods.md",
    "bench/demo_text.py",
    "bench/methods_table.py",
    *(f"tests/{name}.py" for name in ("conftest", "nightly", "cases", "fits", "laws", "test_laws")),
]
DATA_SETS = ["LayerNorm", "degenerate columns", "class of one row", "weighted", "3 targets"]
CHECKS = """
import warnings

import cases
import numpy as np
import torch
from laws import within
from sklearn.base import clone
from typer.testing import CliRunner

import leace_fast as lf
from leace_fast.cli import app
from leace_fast.methods import moments_method

assert lf.__file__.startswith({root!r}), lf.__file__

# exported, in the table, and found by name
assert lf.METHODS["fisher"].fit is lf.methods.fisher is moments_method("fisher") and "fisher" in lf.methods.__all__
scope = {{}}
exec("from leace_fast.methods import *", scope)
assert scope["fisher"] is lf.methods.fisher

# it is what it says
data = cases.classes(500, 6, 3)
moments = data.moments()
eraser = lf.methods.fisher(moments, shrinkage=False)
discriminants = torch.linalg.solve(moments.covariance, moments.class_mean_differences.mT)
basis = torch.linalg.svd(discriminants)[0][:, :2]
within(eraser.left @ eraser.right - basis @ basis.mT, 1e-9, "projection")
assert eraser.report.method == "fisher" and eraser.report.not_erased

# the command line knows it
np.savez("acts.npz", x=data.x.numpy(), y=data.y.numpy())
said = CliRunner().invoke(app, ["fit", "acts.npz", "--method", "fishr", "--out", "out"])
text = " ".join((said.output + str(said.stderr)).split())
assert said.exit_code and "did you mean 'fisher'?" in text and ", fisher" in text, text

# and so does scikit-learn
from leace_fast.sklearn import FisherTransformer, __all__ as transformers
assert "FisherTransformer" in transformers and "Fisher 1936" in FisherTransformer.__doc__
fitted = clone(FisherTransformer(shrinkage=False)).fit(data.x.numpy(), data.y.numpy())
assert fitted.get_params() == {{"kind": "auto", "shrinkage": False, "strength": 1.0}}
assert np.array_equal(fitted.transform(data.x.numpy()), eraser(data.x).numpy())
print("all of it")
"""


def blocks() -> tuple[str, str, str, str]:
    """Return the file of the example, its import, its row in METHODS and its row in the cases."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = text.split("tests/methods/test_contributing.py runs what follows")[1]
    file, imported, row, case = re.findall(r"```python\n(.*?)```", text, re.S)[:4]
    return file, imported, f"        {row.strip()},\n", f"    {case.strip()},\n"


def insert(path: Path, line: str, after: str) -> None:
    """Put a line into a file after the last line that starts with some text."""
    text = path.read_text(encoding="utf-8")
    place = text.index("\n", text.rindex(f"\n{after}") + 1) + 1
    path.write_text(text[:place] + line + text[place:], encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the package, without the demo's data, with the example added as the page says."""
    root = tmp_path_factory.mktemp("copy")
    left_out = shutil.ignore_patterns("assets", "__pycache__", "triton_kernels")
    shutil.copytree(ROOT / "leace_fast", root / "leace_fast", ignore=left_out)
    for name in FILES:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    file, imported, row, case = blocks()
    (root / "leace_fast/methods/_fisher.py").write_text(file, encoding="utf-8")
    insert(root / "leace_fast/methods/__init__.py", imported, "from ._difference_in_means")
    insert(root / "leace_fast/methods/__init__.py", row, "        Method(inlp")
    insert(root / "tests/cases.py", case, '    Case("inlp"')
    return root


def run(root: Path, *arguments: str) -> str:
    """Run Python in the copy, by its own package, and return what it wrote."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=here, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_it_is_exported_found_by_name_and_a_transformer(copy: Path) -> None:
    assert "fisher" not in METHODS, "an example is not a method of the package"
    (copy / "checks.py").write_text(CHECKS.format(root=str(copy)), encoding="utf-8")
    assert run(copy, "checks.py") == "all of it\n"


def test_it_obeys_the_laws_and_its_example_runs(copy: Path) -> None:
    chosen = f"fisher and ({' or '.join(name.split()[-1] for name in DATA_SETS)} or _fisher) and not any_data"
    files = ("tests/test_laws.py", "leace_fast/methods/_fisher.py", "leace_fast/methods/__init__.py")
    said = run(copy, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-n", "0", "-k", chosen, *files)
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) >= len(ERASER_LAWS) * len(DATA_SETS) and "failed" not in said, said
    assert "_fisher.py::leace_fast.methods._fisher.fisher PASSED" in said, said


def test_its_line_of_the_page_is_written(copy: Path) -> None:
    before = (copy / "docs/methods.md").read_text(encoding="utf-8")
    run(copy, "bench/methods_table.py", "--words", "docs/methods.md")
    (line,) = {*(copy / "docs/methods.md").read_text(encoding="utf-8").splitlines()} - {*before.splitlines()}
    start = "| `fisher` | `x - V V' (x - m)`, V an orthonormal basis of `S^-1 C`"
    assert line.startswith(start) and line.endswith("| moments | none; mean kept |  |  |  |  |  |")
