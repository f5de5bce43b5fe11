"""The one way to time, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import machine
import pytest
from work import Work

MAX_ROUNDS = 2000


@pytest.fixture(scope="session")
def rates() -> dict[str, float]:
    return machine.rates()


@pytest.fixture
def measure(benchmark, request, rates: dict[str, float]) -> Callable[[Work, str, float, Callable[[], object]], None]:
    """Return a function that times one peer on one piece of work; `error` is that of its result, checked before."""
    budget = float(request.config.getoption("benchmark_max_time"))
    least = int(request.config.getoption("benchmark_min_rounds"))

    def run(work: Work, peer: str, error: float, call: Callable[[], object]) -> None:
        rate = rates[str(work.dtype).removeprefix("torch.")]
        benchmark.group = work.group
        benchmark.extra_info.update(
            peer=peer,
            bytes=work.bytes,
            operations=work.operations,
            floor=max(work.bytes / rates["copy"], work.operations / rate),
            error=error,
        )
        begin = time.perf_counter()
        call()
        once = time.perf_counter() - begin
        rounds = max(least, min(MAX_ROUNDS, int(budget / once)))
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=min(rounds, 5) if once < budget else 0)

    return run


def pytest_benchmark_generate_machine_info() -> dict[str, object]:
    return {**machine.describe(), "rates": machine.rates()}


def pytest_benchmark_update_json(output_json: dict) -> None:
    """Keep what the table needs: sizes, medians and their spread."""
    kept = ("min", "median", "iqr", "rounds")
    output_json["benchmarks"] = [
        {
            "group": entry["group"],
            **entry["extra_info"],
            **{name: entry["stats"][name] for name in kept},
        }
        for entry in output_json["benchmarks"]
    ]
    for name in ("commit_info", "version"):
        output_json.pop(name, None)
