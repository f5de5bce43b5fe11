"""A function of many things by several threads: in order, with its errors, and never stuck after an interruption."""

from __future__ import annotations

import _thread
import random
import signal
import time

import pytest
from interruptions import timer

from leace_fast.scrubbing._in_threads import in_threads


def test_values_come_in_order_and_the_first_error_counts() -> None:
    def late(number: int) -> int:
        time.sleep((5 - number) / 1000)
        return number * number

    assert list(in_threads(late, range(5))) == [0, 1, 4, 9, 16]
    assert list(in_threads(late, [])) == []

    def failing(number: int) -> int:
        if number in (2, 4):
            raise ValueError(f"job {number}")
        return number

    with pytest.raises(ValueError, match="job 2"):
        list(in_threads(failing, range(5)))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("points", [200, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_an_interruption_at_any_time_leaves_no_wait_and_no_thread(points: int) -> None:
    chance, before, cut = random.Random(0), _thread._count(), 0
    start = time.perf_counter()
    list(in_threads(str, range(20)))
    whole = time.perf_counter() - start
    for _ in range(points):
        try:
            with timer(max(1e-6, 1.5 * whole * chance.random())):
                assert list(in_threads(str, range(20))) == [str(n) for n in range(20)]
        except KeyboardInterrupt:
            cut += 1
    assert cut
    for _ in range(1000):
        if _thread._count() <= before:
            break
        time.sleep(0.01)
    assert _thread._count() <= before
