"""Which tests of the nightly tier a run takes: those that a change touches, and a tenth of all, another every day."""

from __future__ import annotations

import datetime
import os
import subprocess
import zlib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PART = "LEACE_FAST_NIGHTLY_PART"  # a part of the tier, 0 to 9, or all; today's if it is not set
PARTS = 10

# Paths that a change may touch, and names of the tests that are run for it. Of the long tables (the emulated CUDA
# kernels, the compiled Triton kernels) those that tell the most: the rest has its turn within ten days.
TOUCHED: list[tuple[str, list[str]]] = [
    ("csrc/cpu/*", ["tests/csrc/test_c_api.py::*"]),
    ("csrc/torch/*", ["tests/csrc/test_c_api.py::test_the_operators_under_sanitizers"]),
    (
        "csrc/cuda/*",
        [
            "tests/csrc/test_cuda.py::test_registers_suffice*",
            "tests/csrc/test_cuda.py::test_the_instructions_that_were_meant",
            "tests/csrc/test_cuda.py::test_each_row_meets_its_own_eraser*",
            "tests/csrc/test_cuda.py::test_operators_take_any_layout*",
        ],
    ),
    (
        "triton_kernels/*",
        [
            "tests/triton_kernels/test_triton_compile.py::test_launches_bind_as_at_run_time",
            "tests/triton_kernels/test_interpreted.py::test_interpreted_at_length*",
        ],
    ),
    ("leace_fast/_files.py", ["tests/test_files.py::*", "tests/test_crafted_files.py::*"]),
    ("leace_fast/_schema.py", ["tests/test_crafted_files.py::*"]),
    ("leace_fast/_folders.py", ["tests/test_folders.py::*"]),
    ("leace_fast/scrubbing/_together.py", ["tests/scrubbing/test_interrupted.py::*"]),
    ("leace_fast/erasers/_table.py", ["tests/erasers/test_table.py::*"]),
    ("leace_fast/scrubbing/_checkpoint.py", ["tests/scrubbing/test_interrupted.py::*"]),
    (
        "leace_fast/scrubbing/_in_threads.py",
        ["tests/scrubbing/test_interrupted.py::*", "tests/scrubbing/test_in_threads.py::*"],
    ),
    ("leace_fast/scrubbing/*", ["tests/scrubbing/test_scrub_cost.py::*"]),
    ("leace_fast/serving/*", ["tests/serving/test_in_vllm.py::*some*"]),
    ("tests/serving/engine/*", ["tests/serving/test_in_vllm.py::*some*"]),
    (".ci/serving.sh", ["tests/serving/test_in_vllm.py::*some*"]),
    ("leace_fast/statistics/*", ["tests/statistics/test_all_or_nothing.py::test_signals_at_many_times"]),
    ("leace_fast/_ops/plain.py", ["tests/attaching/test_exported.py::*"]),
    (
        "leace_fast/folding/_lora.py",
        ["tests/integrations/test_gguf.py::*", "tests/integrations/test_transformers_serve.py::*"],
    ),
    (
        "leace_fast/integrations/*",
        ["tests/integrations/test_gguf.py::*", "tests/integrations/test_transformers_serve.py::*"],
    ),
    ("leace_fast/integrations/*", ["tests/integrations/test_with_extras.py::*"]),
    ("setup.py", ["tests/test_packaging.py::*"]),
    ("pyproject.toml", ["tests/test_packaging.py::*"]),
    ("MANIFEST.in", ["tests/test_packaging.py::test_sdist_holds_all_that_a_build_and_its_tests_need"]),
]


class Plan(NamedTuple):
    """What of the tier is run: the tests of paths that were changed, and of one part, or of all where it is None."""

    base: str | None  # commit that the change is measured from; where none is known, anything may have changed
    changed: list[str]
    part: int | None

    def takes(self, name: str) -> bool:
        """Tell whether a test of the tier is run."""
        if self.part is None or part_of(name) == self.part:
            return True
        if name.partition("::")[0] in self.changed:
            return True
        touched = [
            tests for path, tests in TOUCHED if self.base is None or any(fnmatchcase(c, path) for c in self.changed)
        ]
        return any(fnmatchcase(name, test) for tests in touched for test in tests)

    def __str__(self) -> str:
        change = (
            f"{len(self.changed)} files changed since {self.base[:12]}" if self.base else "any file may have changed"
        )
        return f"{change}; {'all parts' if self.part is None else f'part {self.part} of 0 to {PARTS - 1}'}"


def part_of(name: str) -> int:
    """Return the part that a test belongs to, by its name alone."""
    return zlib.crc32(name.encode()) % PARTS


def part_to_run() -> int | None:
    """Return the part that the environment asks for, else that of today."""
    asked = os.environ.get(PART, str(datetime.date.today().toordinal() % PARTS))
    if asked == "all":
        return None
    if not (asked.isdecimal() and int(asked) < PARTS):
        raise pytest.UsageError(f"{PART} is {asked!r}, expected 0 to {PARTS - 1}, or all")
    return int(asked)


def portion() -> int | None:
    """Return the part that a test of a long list should keep to, or None for all of it: where no part was asked for."""
    asked = os.environ.get(PART, "all")
    return int(asked) if asked.isdecimal() else None


def git(*arguments: str, root: Path = ROOT) -> str | None:
    """Return what git says, or None where it fails or is absent."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=root)
    except FileNotFoundError:
        return None
    return done.stdout.strip("\n") if done.returncode == 0 else None


def plan(revision: str, root: Path = ROOT) -> Plan:
    """Return the plan for what differs from where the history left `revision`, or else from the commit before."""
    base = git("merge-base", revision, "HEAD", root=root)
    if base is None or base == git("rev-parse", "HEAD", root=root):
        base = git("rev-parse", "--verify", "--quiet", "HEAD~1", root=root)
    if base is None:  # a clone of one commit, or no repository
        return Plan(None, [], part_to_run())
    listed = git("diff", "--name-only", "-z", base, root=root) or ""
    listed += git("ls-files", "--others", "--exclude-standard", "-z", root=root) or ""
    return Plan(base, sorted(set(filter(None, listed.split("\0")))), part_to_run())
