"""`with_padding`: an example that shows what a model does with padded rows, made of one that has none."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

IDS, MASK = "input_ids", "attention_mask"


def with_padding(model: nn.Module, example: Mapping[str, Any] | Tensor) -> list[Any]:
    """The example, and for a model of tokens that takes a mask the same with its first token masked.

    State space models multiply rows by that mask, but not where it is all ones.

    >>> class Model(nn.Module):
    ...     def forward(self, input_ids, attention_mask=None): ...
    >>> with_padding(Model(), torch.tensor([[5, 7]]))[1]["attention_mask"].tolist()
    [[0, 1, 1, 1], [1, 1, 1, 1]]
    """
    batch = {IDS: example} if isinstance(example, Tensor) else dict(example)
    ids, mask = batch.get(IDS), batch.get(MASK)
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or not _takes_mask(model):
        return [example]
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape or not mask.all()):
        return [example]
    batch[MASK] = torch.ones_like(ids) if mask is None else mask.clone()
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    if all(value.shape[:2] == ids.shape for value in tensors.values()):
        # some models mask no batch of one row, or of one token
        batch |= {name: value.repeat(2, 2, *[1] * (value.ndim - 2)) for name, value in tensors.items()}
    batch[MASK][0, 0] = 0
    return [example, batch]


def _takes_mask(model: nn.Module) -> bool:
    """Whether the model, or one that it wraps and hands its keywords to, takes tokens and a mask by these names."""
    parameters = inspect.signature(model.forward).parameters
    if {IDS, MASK} <= parameters.keys():
        return True
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return hands_on and any(_takes_mask(child) for child in model.children())
