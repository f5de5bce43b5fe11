"""Layers that a backward pass computes again, by reentrant gradient checkpointing: erased as they were, or refused.

Without reentry torch compares what is computed again and raises by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import is_inference_mode_enabled
from torch._C import _current_graph_task_id, _is_fwd_grad_enabled
from torch.autograd.function import BackwardCFunction

BACKWARD = ("backward", "vjp")  # of an autograd function


class Attached:
    """Whether an eraser is attached still, for the backward passes that compute its site again."""

    def __init__(self) -> None:
        self.ended = False

    def look(self) -> None:
        """Note that the site runs inside of autograd functions, such as torch's checkpointing, or is computed again.

        Raises:
            RuntimeError: it is computed again, and had not been erased when it ran first.
        """
        for name, node in _functions():
            known = vars(node).setdefault("_attached", [])
            if any(each is self for each in known):
                continue
            if name in BACKWARD:
                raise RuntimeError(
                    "a backward pass computes a layer again (gradient checkpointing), which ran before erasers were "
                    "attached to it: call backward() first, then attach them"
                )
            known.append(self)
            node.register_prehook(self._check)

    def _check(self, gradients: Any) -> None:
        if self.ended:
            raise RuntimeError(
                "this backward pass would compute layers again (gradient checkpointing) without the erasers that the "
                "forward pass had, as they have been detached: call backward() while they are attached"
            )


def in_function() -> bool:
    """Whether an autograd function runs, forward or backward; of the forward pass torch's mode for tangents tells.

    >>> in_function()
    False
    """
    if not _is_fwd_grad_enabled():
        return not is_inference_mode_enabled()  # which has no tangents either
    return _current_graph_task_id() != -1


in_function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # compiled code cannot ask torch


def _functions() -> Iterator[tuple[str, Any]]:
    """The autograd functions that run, from the innermost out: whether `forward` or `backward`, and the node."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount + bool(code.co_flags & 4):  # arguments by name, or *args
            node = frame.f_locals.get(code.co_varnames[0])
            if isinstance(node, BackwardCFunction):
                yield code.co_name, node
        frame = frame.f_back
