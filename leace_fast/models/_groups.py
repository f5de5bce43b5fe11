"""Places in the layers of a model by what they are: the residual stream, what attention adds to it, what the MLP adds.

A layer is an item of a list of modules that takes what the item before it returned. Nothing knows a model family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from ._modules import LISTS, has_weight, is_norm, with_hooks

PLACES = ("residual", "attention_out", "mlp_out")
ATTENTION = ("attention", "attn")  # in the names of its types and modules


@dataclass
class _Run:
    """What one forward pass showed of a module."""

    module: nn.Module
    inputs: list[int]  # numbers of tensors
    outputs: list[int]
    width: int  # of its hidden states; 0 if it returns none
    calls: int = 1
    can_act: bool = True  # it returns a tensor, or a tuple of which hidden states are the first


def find_places(model: nn.Module, group: str, run: Callable[[], Any]) -> list[str]:
    """The names of the modules of a group, in the order in which a forward pass runs them.

    Args:
        group: "residual": the layers themselves; "attention_out": the last linear layer of each attention;
            "mlp_out": the MLP of each layer, or its last linear layer where that module does more.
        run: runs the model once.

    Raises:
        ValueError: the model has no layers, or they have no such place.

    >>> model = nn.Sequential(*[nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2)])
    >>> find_places(model, "residual", lambda: model(torch.ones(2, 4)))
    ['0', '1']
    """
    runs = _traced(model, run)
    layers = _layers(model, runs)
    if not layers:
        raise ValueError(
            f"sites={group!r} needs layers, and this {type(model).__name__} has none: no list of modules of which each "
            "takes what the one before returned; name the sites"
        )
    if group == "residual":
        return layers
    found = {place for layer in layers for place in _inside(runs, layer, attention=group == "attention_out")}
    if not found:
        raise ValueError(
            f"no layer of this {type(model).__name__} (the first is {layers[0]!r}) has a linear layer that is {group}: "
            "name the sites"
        )
    return [name for name in runs if name in found]


def _traced(model: nn.Module, run: Callable[[], Any]) -> dict[str, _Run]:
    """The modules that ran, by name, in order of completion."""
    runs: dict[str, _Run] = {}
    names = {module: name for name, module in model.named_modules() if name}
    numbers: Any = WeakIdKeyDictionary()  # holding the tensors themselves would take memory that grows with depth
    fresh = count()

    def numbered(leaves: list[Any]) -> list[int]:
        return [numbers.setdefault(v, next(fresh)) if isinstance(v, Tensor) else next(fresh) for v in leaves]

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name, given, returned = names[module], pytree.tree_leaves((args, kwargs)), pytree.tree_leaves(output)
        calls = runs.pop(name).calls + 1 if name in runs else 1
        first = output[0] if type(output) is tuple and output else output
        can_act = bool(returned) and first is returned[0]
        runs[name] = _Run(module, numbered(given), numbered(returned), _width(returned), calls, can_act)

    with with_hooks(((module, after) for module in names), with_kwargs=True), torch.no_grad():
        run()
    return runs


def _width(outputs: list[Any]) -> int:
    first = outputs[0] if outputs else None
    return first.shape[-1] if isinstance(first, Tensor) and first.is_floating_point() and first.ndim > 1 else 0


def _layers(model: nn.Module, runs: dict[str, _Run]) -> list[str]:
    """The items of all stacks of layers, in the order in which they ran; stacks inside layers are none."""
    layers: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, LISTS) or name.startswith(tuple(f"{layer}." for layer in layers)):
            continue
        items = [f"{name}.{key}".lstrip(".") for key, _ in module.named_children()]
        items = [item for item in items if item in runs and runs[item].calls == 1]
        if _is_stack(module, [runs[item] for item in items]):
            layers += items
    return [name for name in runs if name in set(layers)]


def _is_stack(module: nn.Module, ran: list[_Run]) -> bool:
    """Whether the items of a list that ran are layers, each of which takes what the one before returned."""
    if len({run.width for run in ran}) != 1 or not ran[0].width:
        return False  # a stream keeps its width; convolutions of sound do not
    if isinstance(module, nn.Sequential) and len({type(run.module) for run in ran}) != 1:
        return False  # the parts of one layer
    if any(next(run.module.children(), None) is None for run in ran):
        return False  # single functions
    return all(one.outputs and one.outputs[0] in two.inputs for one, two in pairwise(ran))


def _inside(runs: dict[str, _Run], layer: str, attention: bool) -> list[str]:
    """The last module of each attention, or of the rest, whose own weights make rows of the layer's width."""
    width = runs[layer].width
    last: dict[str, str] = {}
    for name, run in runs.items():
        if not name.startswith(f"{layer}.") or run.width != width or run.calls > 1 or not has_weight(run.module):
            continue
        around = [outer for outer in _around(name, layer) if outer in runs]
        attentions = [outer for outer in around if _is_attention(outer, runs[outer].module)]
        if attention == bool(attentions):
            last[attentions[0] if attentions else layer] = name
    if attention:
        return list(last.values())
    return [_outermost(runs, layer, name, width) for name in last.values()]


def _around(name: str, layer: str) -> list[str]:
    """The modules of a layer that hold a module, and itself, from the outermost."""
    parts = name[len(layer) + 1 :].split(".")
    return [".".join([layer, *parts[: count + 1]]) for count in range(len(parts))]


def _outermost(runs: dict[str, _Run], layer: str, name: str, width: int) -> str:
    """The largest module around a linear layer that returns hidden states and holds no norm: one of mixed experts."""
    for outer in _around(name, layer):
        run = runs.get(outer)
        norms = any(map(is_norm, run.module.modules())) if run else True
        if run and not norms and run.width == width and run.can_act:
            return outer
    return name


def _is_attention(name: str, module: nn.Module) -> bool:
    """By the name of the type, or of the module: `linear_attn` is a GatedDeltaNet."""
    called = f"{type(module).__name__} {name.rpartition('.')[2]}".lower()
    return any(word in called for word in ATTENTION)
