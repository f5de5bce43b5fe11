"""Models in wrappers, for tests of what runs through them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def as_module(model: Any) -> Any:
    """What `torch.compile` returned, which type checkers take for a function."""
    return model


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "data parallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: nn.DataParallel(as_module(torch.compile(model, backend="eager"))),
}
