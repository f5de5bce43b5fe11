"""How peers are timed, one after the other or in turn, and what is kept of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import machine
import pytest
import torch
from work import Candidate, Work

MAX_ROUNDS = 2000
TURNS = 4  # rounds in turn: what holds up one of them does not move the median much
OURS = "leace-fast"


@pytest.fixture(scope="session")
def rates() -> dict[str, float]:
    return machine.rates()


@pytest.fixture
def measure(benchmark, request, rates: dict[str, float]) -> Callable[[Work, str, float, Callable[[], object]], None]:
    """Return a function that times one peer on one piece of work; `error` is that of its result, checked before."""
    budget = float(request.config.getoption("benchmark_max_time"))
    least = int(request.config.getoption("benchmark_min_rounds"))

    def run(work: Work, peer: str, error: float, call: Callable[[], object]) -> None:
        benchmark.group = work.group
        benchmark.extra_info.update(peer=peer, error=error, **needs(work, rates))
        once = Candidate(error, call).seconds()
        rounds = max(least, min(MAX_ROUNDS, int(budget / once)))
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=min(rounds, 5) if once < budget else 0)

    return run


@pytest.fixture
def measure_in_turn(benchmark, rates: dict[str, float]) -> Callable[[Work, dict[str, Candidate]], None]:
    """Return a function that times all peers round by round, for work so long that a busy machine disturbs some rounds.

    What comes and goes then meets every peer. Each runs once before it is timed: threads of the one before may still
    spin on its cores, and its caches hold another's data. The round of ours is the benchmark's own, all else its
    preparation.
    """

    def run(work: Work, candidates: dict[str, Candidate]) -> None:
        others = {peer: candidate for peer, candidate in candidates.items() if peer != OURS}
        times: dict[str, list[float]] = {peer: [] for peer in others}

        def turn() -> None:
            for peer, candidate in others.items():
                candidate.call()
                times[peer].append(candidate.seconds())
            candidates[OURS].call()

        benchmark.group = work.group
        benchmark.extra_info.update(peer=OURS, error=candidates[OURS].error, **needs(work, rates))
        benchmark.pedantic(candidates[OURS].call, setup=turn, rounds=TURNS)
        benchmark.extra_info["others"] = [
            {"peer": peer, "error": others[peer].error, **needs(work, rates), **spread(times[peer])} for peer in others
        ]

    return run


def needs(work: Work, rates: dict[str, float]) -> dict[str, float]:
    """Return what a piece of work cannot do without, and the time that takes on this machine."""
    # Rows of a dtype that is multiplied slowly can be multiplied in float32.
    rate = rates.get(str(work.dtype).removeprefix("torch."), 0.0)
    rate = rate if work.dtype == torch.float64 else max(rate, rates["float32"])
    floor = max(work.bytes / rates["copy"], work.operations / rate)
    return {"bytes": work.bytes, "operations": work.operations, "floor": floor}


def spread(times: list[float]) -> dict[str, float]:
    """Return what is kept of some times."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"min": min(times), "median": median, "iqr": high - low, "rounds": len(times)}


def pytest_benchmark_generate_machine_info() -> dict[str, object]:
    return {**machine.describe(), "rates": machine.rates()}


def pytest_benchmark_update_json(output_json: dict) -> None:
    """Keep what the table needs: sizes, medians and their spread."""
    kept = ("min", "median", "iqr", "rounds")
    benchmarks = []
    for entry in output_json["benchmarks"]:
        others = entry["extra_info"].pop("others", [])
        own = {**entry["extra_info"], **{name: entry["stats"][name] for name in kept}}
        benchmarks += [{"group": entry["group"], **peer} for peer in (own, *others)]
    output_json["benchmarks"] = benchmarks
    for name in ("commit_info", "version"):
        output_json.pop(name, None)
