"""Calls of `generate` that take turns token by token: what a machine does besides then hits all of them alike."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


def step_times(calls: Sequence[Callable[[Any], object]], seed: int = 0) -> list[list[float]]:
    """Return the seconds of every step of every call; who comes first is drawn anew for each step.

    Args:
        calls: each runs `model.generate(..., streamer=)` with the streamer it is given, all for equally many tokens.
            A step ends with a token in Python's hands; the last one is what `generate` does afterwards.
        seed: of the order.
    """
    turns = _Turns(len(calls), seed)
    threads = torch.get_num_threads()  # which a new thread does not inherit

    def work(number: int) -> list[float]:
        torch.set_num_threads(threads)
        streamer = _Streamer(turns, number)
        try:
            turns.wait(number)
            streamer.begin()
            calls[number](streamer)
            streamer.finish()
        except BaseException as error:
            turns.stop(error)
            raise
        return streamer.times

    with ThreadPoolExecutor(len(calls)) as pool:
        results = [pool.submit(work, number) for number in range(len(calls))]
        turns.advance()
        return [result.result() for result in results]


class _Turns:
    def __init__(self, count: int, seed: int) -> None:
        self.random, self.order = random.Random(seed), list[int]()
        self.ready = [threading.Semaphore(0) for _ in range(count)]
        self.error: BaseException | None = None

    def advance(self) -> None:
        """Let the next one go on."""
        if not self.order:
            self.order = self.random.sample(range(len(self.ready)), len(self.ready))
        self.ready[self.order.pop()].release()

    def wait(self, number: int) -> None:
        self.ready[number].acquire()
        if self.error is not None:
            raise RuntimeError("another call failed") from self.error

    def stop(self, error: BaseException) -> None:
        self.error = self.error or error
        for ready in self.ready:
            ready.release()


class _Streamer:
    """What `generate` gives each token to: the end of a step, and a wait for the next turn."""

    def __init__(self, turns: _Turns, number: int) -> None:
        self.turns, self.number, self.times = turns, number, list[float]()
        # one thread's own time leaves out what other programs take; with more threads there is only the wall clock
        self.clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def begin(self) -> None:
        self.start = self.clock()

    def finish(self) -> None:
        self.times.append(self.clock() - self.start)
        self.turns.advance()

    def put(self, tokens: Any) -> None:
        self.finish()
        self.turns.wait(self.number)
        self.begin()

    def end(self) -> None:
        pass
