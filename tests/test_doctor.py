"""`leace-fast doctor`: what is present, and why what is absent is absent."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import leace_fast
from leace_fast import doctor
from leace_fast._ops import extension as _extension
from leace_fast.cli import app


def finding(name: str) -> doctor.Finding:
    return next(found for found in doctor.examine() if found.name == name)


@pytest.fixture
def fresh_load():
    """Let `load_extension` look again, before and after the test."""
    _extension.load_extension.cache_clear()
    yield
    _extension.load_extension.cache_clear()


def test_names_the_versions_that_are_installed() -> None:
    assert finding("torch").value == torch.__version__
    assert finding("Python").value == platform.python_version()
    assert finding("numpy").value == importlib.metadata.version("numpy")
    assert finding("leace-fast").value == leace_fast.__version__


def test_json_holds_the_same_as_the_table() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed == doctor.as_json(doctor.examine())
    assert {"torch", "CUDA", "Triton", "extension", "transformers", "scikit-learn", "matplotlib"} <= set(printed)
    assert set(printed["torch"]) == {"present", "value", "note"}


def test_table_names_every_finding() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    for found in doctor.examine():
        assert found.name in result.stdout
        assert found.value in result.stdout


def test_says_how_to_get_what_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda distribution: None)
    assert not finding("transformers").present
    assert "leace-fast[hf]" in finding("transformers").note
    assert not finding("Triton").present
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "leace-fast[audit]" in result.stdout, "rich must not take an extra's name for markup"


def test_cuda_says_which_of_the_two_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in finding("CUDA").note
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no device" in finding("CUDA").note


def test_extension_switched_off_says_so(monkeypatch: pytest.MonkeyPatch, fresh_load) -> None:
    monkeypatch.setenv("LEACE_FAST_EXT", "0")
    assert not finding("extension").present
    assert "LEACE_FAST_EXT=0" in finding("extension").note


def test_extension_not_built_says_what_to_do(monkeypatch: pytest.MonkeyPatch, fresh_load) -> None:
    monkeypatch.delenv("LEACE_FAST_EXT", raising=False)
    monkeypatch.setattr(_extension, "MODULE", "leace_fast._never_built")
    assert not finding("extension").present
    assert "--no-build-isolation" in finding("extension").note


def test_module_that_does_not_load_gives_the_reason(monkeypatch: pytest.MonkeyPatch, fresh_load) -> None:
    def broken(name: str):
        raise ImportError("undefined symbol: something")

    monkeypatch.delenv("LEACE_FAST_EXT", raising=False)
    monkeypatch.setattr(_extension.importlib, "import_module", broken)
    assert not _extension.load_extension().present
    assert "undefined symbol" in _extension.load_extension().reason


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module for NumPy that loads, whether or not it has been built here."""
    module = types.SimpleNamespace(
        build_info=lambda: {"compiler": "gcc 1", "flags": "-O9", "instruction_set": "avx2"},
        instruction_sets=lambda: ["baseline", "avx2"],
        cpu_features=lambda: {"avx2": True, "avx512f": False},
        INTERFACE=_extension.INTERFACE,
    )
    monkeypatch.delenv("LEACE_FAST_EXT", raising=False)
    monkeypatch.setattr(_extension.importlib, "import_module", lambda name: module)


def test_operators_not_built_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built, fresh_load) -> None:
    monkeypatch.setattr(_extension, "OPERATORS", tmp_path / "_C_torch.so")
    assert not finding("extension").present
    note = finding("extension").note
    assert "torch operators not built" in note and "--no-build-isolation" in note
    assert finding("CPU").note.endswith("avx2: yes, avx512f: no")


def test_operators_that_do_not_load_give_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built, fresh_load
) -> None:
    (tmp_path / "_C_torch.so").write_text("no library")
    monkeypatch.setattr(_extension, "OPERATORS", tmp_path / "_C_torch.so")
    assert not _extension.load_extension().present
    assert "_C_torch.so" in _extension.load_extension().reason
    assert torch.__version__ in _extension.load_extension().reason


def test_results_without_the_extension_are_the_same() -> None:
    code = (
        "import torch, leace_fast; from leace_fast._ops import operators as ops; torch.manual_seed(0);"
        "e = leace_fast.Eraser(torch.randn(48, 3) / 7, torch.randn(3, 48) / 7, torch.randn(48));"
        "print(ops.EXTENSION.present); print(e(torch.randn(9, 48)).double().sum(dim=1).tolist())"
    )

    def run(**environment: str) -> tuple[str, list[float]]:
        env = {name: value for name, value in os.environ.items() if name != "LEACE_FAST_EXT"} | environment
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        present, values = done.stdout.splitlines()
        return present, json.loads(values)

    present, values = run(LEACE_FAST_EXT="0")
    assert present == "False"
    assert values == pytest.approx(run()[1], rel=1e-5)
