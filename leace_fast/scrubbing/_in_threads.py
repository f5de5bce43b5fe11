"""`in_threads`: a function of many things, by several threads, that Ctrl-C can end at any point."""

from __future__ import annotations

import _thread
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_threads(function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """Yield a function's value of each job, in order; the first job in that order that fails raises.

    The thread that asks works too. Neither `ThreadPoolExecutor` nor `threading.Thread` serves here: an interruption in
    one of their locks, which are written in Python, leaves it held, and the next wait never ends. The queues and the
    start of a thread used here are single calls of C.

    >>> list(in_threads(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    todo: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
    for number in range(len(jobs)):
        todo.put(number)

    def work() -> None:
        while (number := _next(todo)) is not None:
            try:
                done.put((number, function(jobs[number]), None))
            except BaseException as error:
                done.put((number, None, error))
                if not isinstance(error, Exception):
                    raise

    found: dict[int, tuple[Any, BaseException | None]] = {}
    try:
        for _ in range(min(torch.get_num_threads(), len(jobs)) - 1):
            _thread.start_new_thread(work, ())
        work()
        while len(found) < len(jobs):
            number, value, error = done.get()
            found[number] = value, error
    finally:
        while _next(todo) is not None:  # after an interruption the threads end with the job that they are at
            pass
    for number in range(len(jobs)):
        value, error = found.pop(number)
        if error is not None:
            raise error
        yield value


def _next(queue: SimpleQueue[int]) -> int | None:
    try:
        return queue.get_nowait()
    except Empty:
        return None
