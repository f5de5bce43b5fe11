"""The benchmark of the erasure on a GPU, run through on the CPU: it must not fail for the first time on rented time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

FOLDER = str(Path(__file__).parents[2] / "bench/gpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("apply", "timing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import apply  # type: ignore[import-not-found]
    import timing  # type: ignore[import-not-found]

    def once(call, budget: float = 0.0) -> tuple[float, float]:
        call()
        return 1e-3, 0.0

    monkeypatch.setattr(timing, "median_seconds", once)
    monkeypatch.setattr(timing, "ROTATED", 1 << 12)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(apply, "CALLS", 2)
    yield apply
    for name in ("apply", "timing"):
        sys.modules.pop(name, None)


RATES = {"copy": 1e12, "bfloat16": 1e14, "float32": 1e13}


def test_every_row_is_measured_and_right(bench) -> None:
    measured = list(bench.rows(torch.device("cpu"), RATES, dim=64, prefill=(16, 32), decode=(1, 3), ranks=(1, 8)))
    names = {(row["name"], row["peer"]) for row in measured}
    assert len(names) == len(measured)
    assert all(row["seconds"] > 0 and row["floor"] > 0 for row in measured)
    ours = [row for row in measured if row["peer"].startswith("leace-fast") and "error" in row]
    assert len(ours) == 2 * 5 + 2 + 8 and all(row["error"] <= 2**-7 for row in ours)
    fused = next(row for row in measured if row["name"].startswith("add + RMSNorm"))
    assert fused["bytes"] == 4 * 32 * 64 * 2


def test_a_wrong_peer_is_not_timed(bench) -> None:
    factors = bench.Factors(64, 3, torch.bfloat16, torch.device("cpu"))
    x = torch.randn(4, 64).bfloat16()
    for wrong in (lambda x: x, torch.zeros_like, lambda x: x * torch.nan):
        with pytest.raises(RuntimeError, match="not the erasure"):
            factors.error(wrong, x)
