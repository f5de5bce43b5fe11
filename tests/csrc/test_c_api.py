"""The kernels from C: a program against the public header, and odd shapes under sanitizers on each instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from builds import build, object_folder

from leace_fast._ops import operators as ops

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "csrc" / "c"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1"]
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(shutil.which("c++") is None or sys.platform == "win32", reason="no compiler"),
]


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def library(folder: Path) -> list[Path]:
    """Compile all below csrc/cpu, as anyone would who embeds it."""

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        run("c++", "-std=c++17", "-O1", "-Wno-psabi", f"-I{ROOT}/csrc/include", "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sorted((ROOT / "csrc" / "cpu").rglob("*.cpp"))))


def test_a_program_in_c(tmp_path: Path) -> None:
    objects = library(tmp_path)
    run(
        "cc", "-std=c99", "-Wall", "-Werror", f"-I{ROOT}/csrc/include", "-c", HERE / "program.c", "-o", tmp_path / "c.o"
    )
    run("c++", *objects, tmp_path / "c.o", "-o", tmp_path / "program", "-lpthread")
    lines = run(tmp_path / "program", LEACE_FAST_CPU="").splitlines()
    assert lines[:3] == [
        "erased 1 2 3, 1 8 0",
        "the first alone 1 2 3, 6 8 0",
        "summed 16, normed and erased 1 2.77128 0",
    ]
    assert lines[3].removeprefix("on ") in ("amx", "avx512bf16", "avx512", "avx2", "baseline")
    assert run(tmp_path / "program", LEACE_FAST_CPU="baseline").splitlines()[3] == "on baseline"
    assert run(tmp_path / "program", LEACE_FAST_CPU="avx3") == "refused, and nothing written: -1 -1 -1\n"


needs_extension = pytest.mark.skipif(not ops.EXTENSION.present, reason=f"extension: {ops.EXTENSION.reason}")


def build_sanitized(target: Path, factory: pytest.TempPathFactory) -> Path:
    """Build the extension with sanitizers, and return the folder of its objects."""
    objects = object_folder(factory, "sanitized")
    # Optimising takes longer than it saves, and may leave out what the sanitizers are to see.
    options = {"LEACE_FAST_EXT": "1", "CXXFLAGS": " ".join(["-O0", *SANITIZE])}
    command = (sys.executable, "setup.py", "build_ext", "--build-lib", target)
    result = build(objects, *command, env=os.environ | options)
    assert result.returncode == 0, result.stdout + result.stderr
    return objects


@needs_extension
def test_odd_shapes_under_sanitizers(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    objects = sorted((build_sanitized(tmp_path, tmp_path_factory) / "csrc" / "cpu").rglob("*.o"))
    program = tmp_path / "shapes"
    source = HERE / "shapes.cpp"
    run("c++", "-std=c++17", "-O1", *SANITIZE, f"-I{ROOT}/csrc/include", source, *objects, "-o", program, "-lpthread")
    lesser = [name for name in ("avx2", "baseline") if name in ops.EXTENSION.instruction_sets]
    for highest in ("", *lesser):  # the first is whatever this machine has
        assert run(program, LEACE_FAST_CPU=highest).endswith(": 0 failures\n")
    assert run(program, LEACE_FAST_CPU="baseline").startswith("baseline")


@needs_extension
def test_the_operators_under_sanitizers(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tests of the operators once more, in a process that has the sanitizers' library."""
    # The second lets the first see exceptions of C++, which Python alone would load too late.
    runtimes = [run("c++", f"-print-file-name={name}").strip() for name in ("libasan.so", "libstdc++.so")]
    if not Path(runtimes[0]).is_absolute():
        pytest.skip("the compiler has no libasan")
    shutil.copytree(ROOT / "leace_fast", tmp_path / "leace_fast", ignore=shutil.ignore_patterns("*.so", "assets"))
    build_sanitized(tmp_path, tmp_path_factory)
    tests = [
        ROOT / "tests" / "_ops" / name
        for name in ("test_extension.py", "test_norms.py", "test_direct.py", "test_arrays.py")
    ]
    tests.append(ROOT / "tests" / "test_crafted_files.py")
    output = run(
        *(sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", "not compiles", *tests),
        *("-m", "not slow", "--hypothesis-profile=quick"),
        LD_PRELOAD=" ".join(runtimes),
        ASAN_OPTIONS="detect_leaks=0",
        PYTHONPATH=str(tmp_path),
    )
    assert " passed" in output and "skipped" not in output
