"""A call that ends in the middle, by Ctrl-C or for want of memory, changes moments wholly or not at all."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import nightly
import pytest
import torch
from interruptions import Instructions, Operations, points, timer
from laws import assert_same_bits, bits, settled_bits
from torch import Tensor

from leace_fast import Moments, record
from leace_fast.statistics import _draft
from leace_fast.statistics._accumulator import Accumulator

DIM, BLOCK = 4, 16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accumulator, "block_rows", BLOCK)


def rows(count: int, seed: int, kind: str) -> dict[str, Tensor]:
    """Return the arguments of an update."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next((getattr(torch, name) for name in ("float64", "bfloat16", "float16") if name in kind), torch.float32)
    x = torch.randn(count, DIM, generator=generator).to(dtype)
    made = {"x": x, "y": torch.randint(3, (count,), generator=generator)}
    if "targets" in kind:
        made["y"] = torch.randn(count, 2, generator=generator)
    if "weights" in kind:
        made["weight"] = torch.rand(count, generator=generator) + 0.1
    if "groups" in kind:
        made["groups"] = torch.randint(count, (count,), generator=generator)
    if "tiny" in kind:  # a kernel refuses the squares
        made["x"][:, 1] *= 1e-20
    if "not finite" in kind:
        made["x"][::5] = torch.inf
    return made


def filled(kind: str, seed: int = 0) -> Moments:
    """Return moments with rows in the sums and rows that wait."""
    options = {"target_dim": 2} if "targets" in kind else {"num_classes": 3, "per_class": "per class" in kind}
    moments = Moments(DIM, nonfinite="skip", **options)  # type: ignore[arg-type]
    return moments.update(**rows(BLOCK, seed, kind)).update(**rows(BLOCK // 2, seed + 1, kind))


KINDS = [
    "float32",
    "float64",
    "bfloat16 weights",
    "float16 not finite",
    "per class",
    "per class float64 weights",
    "targets",
    "targets float64 weights",
    "groups",
    "groups float64 weights",
    "tiny",
    "tiny per class groups",
]
CALLS: dict[str, Callable[[Moments, str], Any]] = {
    "rows that wait": lambda moments, kind: moments.update(**rows(3, 5, kind)),
    "rows that fill a block": lambda moments, kind: moments.update(**rows(BLOCK - 3, 5, kind)),
    "blocks": lambda moments, kind: moments.update(**rows(3 * BLOCK + 5, 5, kind)),
    "rows of another dtype": lambda moments, kind: moments.update(**other_dtype(rows(BLOCK + 2, 5, kind))),
    "merge": lambda moments, kind: moments.merge(filled(kind, 7)),
    "remove": lambda moments, kind: moments.remove(first_rows(kind)),
    "read": lambda moments, kind: moments.mean,
    "copy": lambda moments, kind: moments.copy(),
    "pickle": lambda moments, kind: pickle.dumps(moments),
}


def other_dtype(given: dict[str, Tensor]) -> dict[str, Tensor]:
    dtype = torch.float32 if given["x"].dtype == torch.float64 else torch.float64
    return {**given, "x": given["x"].to(dtype)}


def first_rows(kind: str) -> Moments:
    options = {"target_dim": 2} if "targets" in kind else {"num_classes": 3, "per_class": "per class" in kind}
    return Moments(DIM, nonfinite="skip", **options).update(**rows(BLOCK, 0, kind))  # type: ignore[arg-type]


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    try:
        assert_same_bits(one, two)
    except AssertionError:
        return False
    return True


def check(kind: str, call: str, how: Any, error: type[BaseException], most: int) -> None:
    """Let a call fail at some of its points; what is left is what was before, or what was to be."""
    act, start = CALLS[call], filled(kind)
    after = start.copy()
    number = points(lambda: act(after, kind), how)
    outcomes = settled_bits(start), settled_bits(after)
    every = range(number) if number <= most else sorted(random.Random(0).sample(range(number), most))
    for at in every:
        moments = start.copy()
        with pytest.raises(error), torch.no_grad(), how(at):
            act(moments, kind)
        found = settled_bits(moments)
        assert any(same(found, one) for one in outcomes), f"at {at} of {number}"
        if same(found, outcomes[0]):  # and it can go on
            act(moments, kind)
            assert same(settled_bits(moments), outcomes[1]), f"after {at} of {number}"


EVERY = list(itertools.product(KINDS, CALLS))


@pytest.mark.parametrize(("kind", "call"), EVERY, ids=lambda name: name)
def test_an_interruption_at_some_instructions(kind: str, call: str) -> None:
    check(kind, call, Instructions, KeyboardInterrupt, most=6)


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "call"), EVERY, ids=lambda name: name)
def test_an_interruption_at_any_instruction(kind: str, call: str) -> None:
    """All of them where the whole tier runs, else a hundred of each call."""
    check(kind, call, Instructions, KeyboardInterrupt, most=10**9 if nightly.portion() is None else 100)


@pytest.mark.parametrize(("kind", "call"), EVERY, ids=lambda name: name)
def test_no_memory_at_any_operation(kind: str, call: str) -> None:
    if call != "pickle":
        check(kind, call, Operations, MemoryError, most=8)


@pytest.mark.parametrize("waiting", [1, 3, 16])
def test_long_calls_go_on_with_a_copy(waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks wait for the end, the bits are the same, and so is what an interruption leaves."""
    expected = settled_bits(filled("float32").update(**rows(20 * BLOCK, 5, "float32")))
    monkeypatch.setattr(_draft, "MOST_WAITING", waiting)
    monkeypatch.setattr(_draft, "SMALL", 0)
    assert_same_bits(settled_bits(filled("float32").update(**rows(20 * BLOCK, 5, "float32"))), expected)
    for kind in ("float32", "per class", "tiny", "tiny per class"):
        check(kind, "blocks", Instructions, KeyboardInterrupt, most=15)


class Norms(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.LayerNorm(DIM), torch.nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(1e-16 * self.first(x))


@pytest.mark.parametrize("length", [3, 9, 40])
def test_a_pass_that_is_interrupted_is_recorded_at_all_sites_or_none(length: int) -> None:
    model, x = Norms(), torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(length))
    labels = torch.arange(2 * length).reshape(2, length) % 2

    def begun() -> tuple[Any, dict[str, Moments]]:
        context = record(model, ["first", "second"], num_classes=2)
        moments = context.__enter__()
        model(x, concept_labels=labels)
        return context, moments

    def bits_of(moments: dict[str, Moments]) -> list[dict[str, Any]]:
        return [settled_bits(one) for one in moments.values()]

    with torch.no_grad():
        context, after = begun()
        before = bits_of(after)
        number = points(lambda: model(x, concept_labels=labels), Instructions)
        outcomes = before, bits_of(after)
        context.__exit__(None, None, None)
        for at in sorted(random.Random(0).sample(range(number), 40)):
            context, moments = begun()
            with pytest.raises(KeyboardInterrupt), Instructions(at):
                model(x, concept_labels=labels)
            found = bits_of(moments)
            assert any(all(map(same, found, one)) for one in outcomes), f"at {at} of {number}"
            context.__exit__(None, None, None)


def interrupted(trials: int) -> None:
    """Interrupt streams of updates and merges by a signal, at random times."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no timers here")
    random.seed(0)
    for trial in range(trials):
        kind = KINDS[trial % len(KINDS)]
        acts = list(CALLS.values())[:3] + [CALLS["merge"]]
        states = [filled(kind)]
        begin = time.perf_counter()
        for act in acts:
            states.append(states[-1].copy())
            act(states[-1], kind)
        outcomes, moments = [settled_bits(state) for state in states], filled(kind)
        try:
            with timer(random.uniform(1e-4, time.perf_counter() - begin)):
                for act in acts:
                    act(moments, kind)
        except KeyboardInterrupt:
            pass
        assert any(same(settled_bits(moments), one) for one in outcomes), kind


def test_signals_at_some_times() -> None:
    interrupted(25)


@pytest.mark.nightly
def test_signals_at_many_times() -> None:
    interrupted(500)


# ------------------------------------------------------------------ threads


@pytest.mark.parametrize("kind", ["float32", "float64 weights", "per class", "groups", "targets"])
def test_threads_add_to_the_same_moments(kind: str) -> None:
    """All rows count; sums are those of some order, and so equal up to rounding."""
    shared, alone, errors = filled(kind), filled(kind), []
    batches = [rows(1 + seed % 40, seed, kind) for seed in range(120)]

    def work(part: list[dict[str, Tensor]]) -> None:
        try:
            for batch in part:
                shared.update(**batch)
                assert shared.count >= 0
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(batches[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch in batches:
        alone.update(**batch)
    assert not errors and shared.class_counts.equal(alone.class_counts)
    for name in ("mean", "covariance", "cross_covariance"):
        torch.testing.assert_close(getattr(shared, name), getattr(alone, name), rtol=1e-5, atol=1e-5)
    if "groups" in kind:
        assert shared.cells is not None and alone.cells is not None
        assert shared.cells.counts.equal(alone.cells.counts)


def test_threads_merge_both_ways() -> None:
    """Two moments, each merged into the other at the same time: no thread waits for ever."""
    one, two = filled("float32"), filled("float32", 9)

    def work(here: Moments, there: Moments) -> None:
        for _ in range(20):
            here.copy().merge(there)
            here.merge(Moments(DIM, 3).merge(there).remove(there))

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in ((one, two), (two, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_copies_of_every_kind_have_a_lock_of_their_own() -> None:
    moments = filled("groups")
    for twin in (copy.copy(moments), copy.deepcopy(moments), pickle.loads(pickle.dumps(moments)), moments.copy()):
        assert_same_bits(bits(twin), bits(moments))
        assert twin._lock is not moments._lock
        before = settled_bits(moments)
        twin.update(**rows(40, 3, "groups"))
        assert_same_bits(settled_bits(moments), before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_a_thread_adds_finds_whole_moments() -> None:
    moments, end = filled("float64"), threading.Event()

    def work() -> None:
        while not end.is_set():
            moments.update(**rows(40, 3, "float64"))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                held = moments._lock.acquire(timeout=10)
                os._exit(
                    0 if held and bool(moments._sums.state.weights.sum() == moments._sums.state.counts.sum()) else 1
                )
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        end.set()
        thread.join()
