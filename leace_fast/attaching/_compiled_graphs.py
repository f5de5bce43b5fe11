"""A backend of `torch.compile` that moves residual adds into the fused norms that read them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

NAMES = ("add_rms_norm_project", "add_layer_norm_project")


def inductor(graph: fx.GraphModule, inputs: Sequence[Tensor], **options: Any) -> Any:
    """Compile with Inductor after `fuse_residuals`: `torch.compile(model, backend=inductor)`.

    Models spell out `x + residual` in their own code, where no module can take it over; in the graph that the compiler
    has of them it is plain to see. For models whose norms are fused (`Scrubber.attached(model, fuse=True)`).

    Args:
        graph: what the compiler made of the model; it is changed.
        inputs: an example of each tensor that the graph takes.
        **options: of Inductor's `compile_fx`.

    >>> from torch import nn
    >>> from leace_fast import Eraser, Scrubber
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    >>> scrubber = Scrubber({"1": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])})
    >>> with scrubber.attached(model, fuse=True):
    ...     compiled = torch.compile(model, backend=inductor)  # compiles when it is first called
    >>> isinstance(compiled, nn.Module)
    True
    """
    from torch._inductor.compile_fx import compile_fx

    fuse_residuals(graph)
    return compile_fx(graph, list(inputs), **options)


def fuse_residuals(module: fx.GraphModule) -> int:
    """Let each fused norm of a graph do the add that makes its input; returns how many do now.

    The bits stay the same: the sum is rounded to its dtype before it is normed, and handed to its other readers.
    """
    operators = {getattr(torch.ops.leace_fast, name).default for name in NAMES if hasattr(torch.ops.leace_fast, name)}
    count = 0
    for norm in list(module.graph.nodes):
        if norm.target not in operators or norm.args[1] is not None or not _is_add(total := norm.args[0]):
            continue
        for reader in list(total.users):
            if reader.target is getattr and not reader.users:  # a look at its device, already answered
                module.graph.erase_node(reader)
        if any(reader < norm for reader in total.users):  # needs the sum before the norm has made it
            continue
        norm.args = (*total.args, *norm.args[2:])
        with module.graph.inserting_after(norm):
            summed = module.graph.call_function(operator.getitem, (norm, 1))
        summed.meta = dict(total.meta)
        total.replace_all_uses_with(summed)
        module.graph.erase_node(total)
        count += 1
    if count:
        module.graph.lint()
        module.recompile()
    return count


def _is_add(node: fx.Node) -> bool:
    if node.target not in (operator.add, torch.add, torch.ops.aten.add.Tensor) or node.kwargs or len(node.args) != 2:
        return False
    values = [_value(part) for part in (node, *node.args)]
    like = values[0]
    return all(isinstance(v, Tensor) and v.shape == like.shape and v.dtype == like.dtype for v in values)


def _value(node: Any) -> Any:
    return node.meta.get("example_value", node.meta.get("val")) if isinstance(node, fx.Node) else None
