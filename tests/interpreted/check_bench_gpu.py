"""What `make bench-gpu` does before and after it times anything, at a size that the interpreter can run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import correctness
import plot
import pytest
import sanitized
import torch
from timing import Work

from leace_fast import Moments
from leace_fast.statistics import device
from leace_fast.triton_kernels import block

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def kernels_on_the_cpu() -> Iterator[None]:
    with patch.object(device, "DEVICES", ["cpu"]), patch.object(block, "block_rows", lambda dim: 256):
        yield


def check_sums() -> None:
    found = correctness.check_sums(CPU, [(260, 5)], (100.0,))
    assert {(row["dtype"], row["precision"]) for row in found} >= {
        ("torch.bfloat16", "high"),
        ("torch.float32", "ieee"),
    }
    assert all(0 < row["spectral"] < 0.1 for row in found)


def check_sums_that_are_wrong_are_seen() -> None:
    x, y = correctness.sample(100, 4, torch.float32, 0.0, CPU, 0), correctness.labels(100, 3, CPU)
    moments = Moments(4, 3, device=CPU).update(x, y)
    assert correctness.errors(moments, x, y)["correlation"] < 1e-5
    assert correctness.errors(moments, x + torch.randn(100, 4) / 100, y)["sums"] > 1e-5
    moments._state.second[2, 1] += 1
    assert correctness.errors(moments, x, y)["correlation"] > 1e-3


def check_repeats_and_drift() -> None:
    assert correctness.check_repeats(CPU, 2, 300, 5) == 2
    drift = correctness.check_drift(CPU, 600, 4, 100.0, block=300)
    assert drift["rows"] == 600 and drift["worst"] < 1e-6


@pytest.mark.slow
def check_the_program_for_the_sanitizer(capsys: pytest.CaptureFixture[str]) -> None:
    sanitized.main(CPU)
    assert "every kernel ran" in capsys.readouterr().out


def check_table_and_roofline(tmp_path: Path) -> None:
    rates = {"copy": 4e12, "bfloat16": 8e14, "float32": 6e13}
    work = Work("product d=4096 N=16384", 1e8, 2.7e11)
    assert work.floor(rates) == pytest.approx(2.7e11 / 8e14)
    rows = [
        {"name": work.name, "bytes": work.bytes, "operations": work.operations, "peer": peer, "seconds": seconds}
        | {"floor": work.floor(rates)}
        for peer, seconds in (("leace-fast", 4e-4), ("torch.mm", 8e-4))
    ]
    assert "1.19" in plot.table(rows) and "torch.mm" in plot.table(rows)
    result = {"machine": {"device": "none"}, "rates": rates, "rows": rows}
    plot.draw(json.loads(json.dumps(result)), tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
