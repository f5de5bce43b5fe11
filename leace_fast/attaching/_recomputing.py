"""Layers that a backward pass computes again, by reentrant gradient checkpointing: erased as they were, or refused.

Without reentry torch compares what is computed again and raises by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

NODE = "CheckpointFunctionBackward"  # what torch's checkpointing, and that of others, leaves in the graph


class Attached:
    """Whether erasers are attached still; graphs keep it for their backward pass."""

    def __init__(self) -> None:
        self.ended = False

    def end(self) -> None:
        """The erasers have been detached."""
        self.ended = True

    def hold(self, output: Any) -> None:
        """Raise in the backward pass from an output if layers were to be computed again without their erasers."""
        tensors = [tensor for tensor in _tensors(output) if tensor.grad_fn is not None]
        if recomputes(tensors):
            for tensor in tensors:
                tensor.register_hook(self)

    def __call__(self, gradient: Tensor) -> None:
        if self.ended:
            raise RuntimeError(
                "this backward pass would compute layers again (gradient checkpointing) without the erasers that the "
                "forward pass had, as they have been detached: call backward() while they are attached"
            )


def recomputes(tensors: list[Tensor]) -> bool:
    """Whether a backward pass from tensors computes layers again.

    >>> from torch.utils.checkpoint import checkpoint
    >>> x = torch.ones(2, requires_grad=True)
    >>> recomputes([x + 1]), recomputes([checkpoint(torch.exp, x, use_reentrant=True) + 1])
    (False, True)
    """
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name().startswith(NODE):
            return True
        seen.add(node)
        waiting += [below for below, _ in node.next_functions]
    return False


def check_not_recomputed(module: nn.Module) -> None:
    """Raise RuntimeError where a backward pass runs a module that has not run since erasers were attached."""
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"a backward pass computes a {type(module).__name__} again (gradient checkpointing), which ran before "
            "erasers were attached to it: call backward() first, then attach them"
        )


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a model returned."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)
