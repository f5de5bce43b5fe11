"""Calls that nothing comes between: how a change to several sums is whole, or not at all.

Python raises KeyboardInterrupt, and whatever else the handler of a signal raises, between two instructions of Python
code. A loop over functions that are written in C, which itself is written in C, has no such place.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import takewhile
from typing import Any

import torch

Step = Callable[[], Any]  # a `partial` of a function that is written in C

_call, _is_done = operator.methodcaller("__call__"), partial(operator.is_not, False)


def at_once(steps: Iterable[Step]) -> None:
    """Call functions that are written in C one after the other, up to the first that returns False.

    Args:
        steps: without arguments, as `functools.partial` makes them.

    Source: https://docs.python.org/3/library/signal.html, "Execution of Python signal handlers".

    >>> found = []
    >>> at_once([partial(found.append, 1), partial(bool, 0), partial(found.append, 2)])
    >>> found
    [1]
    """
    if torch._C._len_torch_dispatch_stack() or torch._C._is_torch_function_mode_enabled():
        # Modes are written in Python, and would be called for each step.
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            deque(takewhile(_is_done, map(_call, steps)), maxlen=0)
        return
    deque(takewhile(_is_done, map(_call, steps)), maxlen=0)
