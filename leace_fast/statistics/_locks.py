"""One lock for each `Moments`: threads add to them in turn, and a process that is forked finds them whole."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakSet

import torch

Method = TypeVar("Method", bound=Callable[..., Any])

_EVERY: WeakSet[Any] = WeakSet()
_LIST = threading.RLock()  # held while locks are made, and from before a fork until after it
_HELD: list[Any] = []


def new_lock() -> Any:
    """Return a lock that its thread may take again.

    >>> with new_lock() as lock:
    ...     lock
    True
    """
    lock = threading.RLock()
    with _LIST:
        _EVERY.add(lock)
    return lock


def locked(method: Method) -> Method:
    """Let a method hold `_lock` of its object; tensors that it makes in inference mode can be changed outside of it."""

    @functools.wraps(method)
    def holding(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            with self._lock, torch.inference_mode(False), torch.no_grad():
                return method(self, *args, **kwargs)
        with self._lock:
            return method(self, *args, **kwargs)

    return holding  # type: ignore[return-value]


def _before_fork() -> None:
    _LIST.acquire()
    _HELD.extend(sorted(_EVERY, key=id))  # the order in which `merge` takes two
    for lock in _HELD:
        lock.acquire()


def _after_fork() -> None:
    while _HELD:
        _HELD.pop().release()
    _LIST.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
