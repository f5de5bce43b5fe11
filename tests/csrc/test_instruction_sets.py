"""The instruction set: one for all kernels, which LEACE_FAST_CPU holds lower; what cannot be is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import leace_fast
from leace_fast._ops import extension as _extension
from leace_fast._ops import load_extension
from leace_fast.statistics import _block_sums as sums

EXTENSION = load_extension()
ALL = ("baseline", "avx2", "avx512", "avx512bf16", "amx")
# What is known not to run here: in a run that is held, nothing is.
LACKING = () if os.environ.get("LEACE_FAST_CPU") else ALL[len(EXTENSION.instruction_sets) :]
pytestmark = pytest.mark.skipif(not EXTENSION.present, reason=f"extension: {EXTENSION.reason}")


def run(code: str, instruction_set: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own: a process chooses once."""
    environment = os.environ | {"LEACE_FAST_CPU": instruction_set}
    root = Path(leace_fast.__file__).parent.parent
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=root)


CHOICE = """
import json, os, torch
from leace_fast import Eraser, Moments
from leace_fast._ops import load_extension
from leace_fast.statistics import _block_sums as sums

os.environ["LEACE_FAST_CPU"] = "baseline"  # too late: all has been chosen
x, refused = torch.ones(3, 40), []
for number in range(-1, 7):
    try:
        assert torch.ops.leace_fast.all_finite(x, number)
    except ValueError as error:
        assert f"number {number}, expected" in str(error), error
        refused.append(number)
left, right = torch.linspace(-1, 1, 120).reshape(3, 40).mT, torch.linspace(1, 2, 120).reshape(3, 40)
erased = Eraser(left, right, x[0])(x + 1)
assert torch.equal(erased, torch.ops.leace_fast.project(x + 1, left, right, x[0])), "both libraries chose the same"
Moments(40, 2).update(x, torch.tensor([0, 1, 1]))
sets = load_extension().instruction_sets
print(json.dumps([sets, load_extension().build["instruction_set"], sets[sums.LEVEL], refused]))
"""


@pytest.mark.parametrize("held", ["", *EXTENSION.instruction_sets])
def test_all_kernels_are_held_to_the_same_set(held: str) -> None:
    done = run(CHOICE, held)
    assert done.returncode == 0, done.stderr
    found, built, of_sums, refused = json.loads(done.stdout)
    expected = held or found[-1]
    assert tuple(found) == ALL[: ALL.index(expected) + 1]
    assert (built, of_sums) == (expected, expected)
    # No call reaches kernels above it, or of the baseline, which has none for sums.
    assert refused == [-1, 0, *range(len(found), 7)]


def test_this_process_uses_one_of_them() -> None:
    assert EXTENSION.instruction_sets == ALL[: len(EXTENSION.instruction_sets)]
    in_use = EXTENSION.instruction_sets[-1]
    assert EXTENSION.build["instruction_set"] == in_use == EXTENSION.instruction_sets[sums.LEVEL]


# What this processor lacks is no more to be had than what does not exist.
@pytest.mark.parametrize("name", ["avx3", "AVX2", *LACKING[-1:]])
def test_a_set_that_cannot_be_is_refused(name: str) -> None:
    done = run("import leace_fast", name)
    assert done.returncode != 0
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"ValueError: LEACE_FAST_CPU is {name!r}, expected one that can run here: baseline")
    assert name not in message.partition("expected")[2].split(": ")[1].split(", ")


def test_without_kernels_there_is_nothing_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEACE_FAST_EXT", "0")
    assert run("import leace_fast", "avx3").returncode == 0


ALONE = f"""
import importlib.util, numpy, torch
spec = importlib.util.spec_from_file_location("_C", {EXTENSION.module and EXTENSION.module.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
torch.ops.load_library({str(_extension.OPERATORS)!r})
x, left, right = torch.ones(2, 3), torch.ones(3, 1), torch.ones(1, 3)
weight, norms = torch.ones(3), torch.ops.leace_fast
zeros, labels, shift = torch.zeros(3, 3).double(), torch.zeros(2).long(), torch.zeros(3).double()
array = numpy.ones((2, 3), numpy.float32)
for call in (
    module.build_info,
    module.instruction_sets,
    lambda: module.project(array, left.numpy(), right.numpy(), out=array),
    lambda: norms.project_(x, left, right),
    lambda: norms.add_rms_norm_project(x, None, weight, 0.0, left, right),
    lambda: norms.add_second_moment(zeros, x, None, shift, zeros[0], zeros[1], 1),
    lambda: norms.add_class_sums(zeros, zeros[0], zeros[1], x, labels, None, shift, 1),
):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        assert "LEACE_FAST_CPU" in str(error), error
        print(type(error).__name__)
assert (x == 1).all() and (array == 1).all() and not zeros.any()
"""


def test_each_library_refuses_it_by_itself() -> None:
    """Without the package, which looks when it loads them; nothing is written."""
    done = run(ALONE, "avx3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ValueError"] * 3 + ["RuntimeError"] * 2 + ["ValueError"] * 2


def test_a_refused_call_changes_nothing() -> None:
    x, labels, shift = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), torch.zeros(3, dtype=torch.float64)
    outputs: list[Tensor] = [torch.zeros(3, 3, dtype=torch.float64) for _ in range(3)]
    one, two, three = outputs
    for number in (-1, 0, len(EXTENSION.instruction_sets), 2**40):
        with pytest.raises(ValueError, match=f"number {number}, expected"):
            torch.ops.leace_fast.add_class_sums(one, two[0], three[0], x, labels, None, shift, number)
        with pytest.raises(ValueError, match=f"number {number}, expected"):
            torch.ops.leace_fast.add_second_moment(one, x, None, shift, two[0], three[0], number)
    assert not any(output.any() for output in outputs)
