"""The model and its erasers, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import served

import leace_fast as lf


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("served")
    served.make(made)
    return made


@pytest.fixture(scope="session")
def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model").eval()


@pytest.fixture(scope="session")
def scrubbers(folder: Path) -> dict[str, lf.Scrubber]:
    return {name: lf.Scrubber.from_pretrained(folder / name) for name in ("one", "two")}
