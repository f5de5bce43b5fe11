"""Stored batches, and what the modules of a stopped forward pass returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..models import without_labels
from ._buffer import Buffer, Slot

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class Argument:
    """Stands for the n-th leaf of a module's arguments."""

    index: int


@dataclass
class Kept:
    """What one call of a module returned: leaves that are stored tensors, arguments or plain values."""

    leaves: list[Any]
    spec: Any

    def restore(self, arguments: tuple[Any, ...]) -> Any:
        given = pytree.tree_leaves(arguments)

        def value(leaf: Any) -> Any:
            return given[leaf.index] if isinstance(leaf, Argument) else leaf.get() if isinstance(leaf, Slot) else leaf

        return pytree.tree_unflatten([value(leaf) for leaf in self.leaves], self.spec)

    def drop(self) -> None:
        for leaf in self.leaves:
            if isinstance(leaf, Slot):
                leaf.drop()


class Batch:
    """A stored batch, and what its forward pass has left so far."""

    def __init__(self, inputs: Mapping[str, Any], buffer: Buffer) -> None:
        leaves, spec = pytree.tree_flatten(without_labels(inputs))
        self.inputs = Kept([buffer.put(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)
        self.kept: dict[str, Kept] = {}
        self.passed: set[str] = set()  # layers whose output nobody reads any more

    def clear(self) -> None:
        """Forget the forward pass."""
        for kept in self.kept.values():
            kept.drop()
        self.kept, self.passed = {}, set()


def described(output: Any, given: Sequence[Any], whole: Sequence[Any]) -> tuple[list[Any], Any]:
    """The leaves of an output, those that are arguments by their place, and its structure."""
    leaves, spec = pytree.tree_flatten(output)
    places = {id(value): index for index, value in enumerate(given) if any(value is other for other in whole)}
    return [Argument(places[id(v)]) if isinstance(v, Tensor) and id(v) in places else v for v in leaves], spec


def template_of(given: Sequence[Any], output: Any) -> tuple[list[Any], Any] | None:
    """What stands for a layer's output once nobody reads it: its input in the place of the hidden states."""
    leaves, spec = described(output, given, given)
    new = [index for index, leaf in enumerate(leaves) if not isinstance(leaf, (Argument, *PLAIN))]
    if len(new) != 1 or not isinstance(leaves[new[0]], Tensor):
        return None
    hidden = leaves[new[0]]
    for index, value in enumerate(given):
        if isinstance(value, Tensor) and value.shape == hidden.shape and value.dtype == hidden.dtype:
            leaves[new[0]] = Argument(index)
            return leaves, spec
    return None
