"""What `make bench-gpu` does before and after it times anything, at a size that the interpreter can run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bias
import correctness
import fit
import overlap
import plot
import pytest
import run
import sanitized
import timing
import torch
from timing import Work

from leace_fast import Moments
from leace_fast.statistics import _kernels
from leace_fast.triton_kernels import configs

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def kernels_on_the_cpu() -> Iterator[None]:
    with patch.object(_kernels, "DEVICES", ["cpu"]), patch.object(configs, "block_rows", lambda dim: 256):
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
    moments._sums.state.second[2, 1] += 1
    assert correctness.errors(moments, x, y)["correlation"] > 1e-3


def check_repeats_and_drift() -> None:
    assert correctness.check_repeats(CPU, 2, 300, 5) == 2
    assert correctness.check_no_waiting(CPU, 1, 200, 4, steps=1)["allocations"] == 0
    drift = correctness.check_drift(CPU, 600, 4, 100.0, block=300)
    assert drift["rows"] == 600 and drift["worst"] < 1e-6


def check_a_single_row() -> None:
    found = correctness.check_sums(CPU, [(1, 5)], (0.0,))
    assert len(found) == 4 and not any(row["correlation"] for row in found)


@pytest.mark.slow
def check_what_is_recorded_aside() -> None:
    assert correctness.check_record(CPU, 2, 200, 4, steps=1)["allocations"] == 0


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(call: Any, budget: float = 0.0) -> tuple[float, float]:
        call()
        return 1e-3, 0.0

    product = torch.mm
    monkeypatch.setattr(timing, "median_seconds", once)
    monkeypatch.setattr(fit, "median_seconds", once)
    monkeypatch.setattr(timing, "ROTATED", 1)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(torch, "mm", lambda x, y, out_dtype: product(x.float(), y.float()))  # CUDA's alone
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.slow
def check_every_row_of_the_fit(untimed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "block_rows", lambda dim: 40)
    for name, size in {
        "CALLS": 1,
        "CLASSES": 2,
        "COMPILED": (8,),
        "UPDATES": ((4, 20, torch.bfloat16), (4, 20, torch.float32)),
        "INGEST": (8, (2,)),
        "BY_CLASS": (4, 40),
        "SITES": (1, 4, 20),
    }.items():
        monkeypatch.setattr(fit, name, size)
    found = list(fit.rows(CPU, timing.KNOWN, dims=(8,)))
    assert len({(row["name"], row["peer"]) for row in found}) == len(found)
    assert not [row for row in found if row["seconds"] is None]
    assert {"leace-fast", "leace-fast, of a tile", "torch.mm", "torch.compile"} <= {row["peer"] for row in found}


def check_a_peer_that_fails_is_named(untimed: None) -> None:
    def fails() -> None:
        raise RuntimeError("no such operator")

    found = timing.row(Work("w", 1, 1), "torch.mm", fails, timing.KNOWN)
    assert found["seconds"] is None and "no such operator" in plot.table([found])
    with pytest.raises(RuntimeError):
        timing.row(Work("w", 1, 1), "leace-fast", fails, timing.KNOWN)


def check_the_bias_of_an_accumulator() -> None:
    found = bias.measure(CPU, (9, 0), 4, promoted=(64, 256))
    assert [row["rows"] for row in found] == [64, 256] and all(0 < row["worst"] < 1e-6 for row in found)


@pytest.mark.slow
def check_the_overlap_is_traced(untimed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, size in {"LAYERS": 1, "DIM": 8, "ROWS": 16}.items():
        monkeypatch.setattr(overlap, name, size)
    found = overlap.measure(CPU, tmp_path / "trace.json.gz")
    assert len(found) == 3 and (tmp_path / "trace.json.gz").exists()


def check_a_part_that_fails_stops_no_other(tmp_path: Path) -> None:
    session = run.Session(tmp_path / "gpu.json", 100.0)
    session.run("first", lambda: 1 / 0)
    session.run("second", lambda: iter([{"peer": "torch.mm"}] * 3))
    session.run("third", lambda: iter([{"peer": "torch.mm"}] * 3), keep=1000)
    session.limit = 0
    session.run("fourth", lambda: 4)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert "ZeroDivisionError" in written["failures"]["first"]
    assert len(written["rows"]) == 4 and written["left_out"] == ["the rest of third"]
    assert session.result["left_out"][-1] == "fourth"


@pytest.mark.slow
def check_the_program_for_the_sanitizer(capsys: pytest.CaptureFixture[str]) -> None:
    sanitized.main(CPU, 60)
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
