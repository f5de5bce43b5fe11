"""Closed forms on one thread, where several would wait for each other longer than they work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .._ops import load_extension
from ..statistics import Moments

Method = TypeVar("Method", bound=Callable[..., Any])

# Up to this width a second thread gains a quarter at most; where other programs use its core, it loses nine tenths.
# Above it, the loops of the statistics have told whether there are such programs.
NARROW = 1024


def on_one_thread(method: Method) -> Method:
    """Let a method run on one of torch's threads where its moments are narrow, or threads were held up lately.

    Source: bench/busy_machine.py, where both are measured.

    >>> @on_one_thread
    ... def threads(moments):
    ...     return torch.get_num_threads()
    >>> threads(Moments(2, 2))
    1
    """

    @functools.wraps(method)
    def limited(*data: Any, **options: Any) -> Any:
        first = data[0] if data else None
        one = first[0] if isinstance(first, (list, tuple)) and first else first
        threads = torch.get_num_threads()
        if threads == 1 or not isinstance(one, Moments) or one.device.type != "cpu":
            return method(*data, **options)
        if one.dim > NARROW and not load_extension().held_up():
            return method(*data, **options)
        torch.set_num_threads(1)
        try:
            return method(*data, **options)
        finally:
            torch.set_num_threads(threads)

    return limited  # type: ignore[return-value]
