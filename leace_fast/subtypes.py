"""Modules that have another type for a while, so that compiled code sees that they behave otherwise.

Compiled code is guarded by the types of the modules that it met. It does not look for hooks where it found none, nor
for a `forward` that was set on an instance, and would silently run without them.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

Kind = type[nn.Module]


def put_on(module: nn.Module, layer: str, **members: Any) -> None:
    """Give a module a subtype of its type, of the same name, with other members; layers may lie on each other.

    Raises:
        TypeError: the type cannot change, as one with slots or of a scripted module; nothing has changed.

    >>> import torch
    >>> norm = nn.LayerNorm(2)
    >>> put_on(norm, "doubled", forward=lambda self, x: 2 * x)
    >>> norm(torch.ones(2)), isinstance(norm, nn.LayerNorm)
    (tensor([2., 2.]), True)
    >>> take_off(norm, "doubled")
    True
    >>> type(norm) is nn.LayerNorm
    True
    """
    module.__class__ = _subtype(type(module), layer, **members)


def take_off(module: nn.Module, layer: str) -> bool:
    """Undo `put_on`, whatever lies above; False where it cannot be: another library has made its own type of it."""
    above: list[tuple[str, dict[str, Any]]] = []
    kind: Any = type(module)
    while True:
        name, members = vars(kind).get("_layer", ("", {}))
        kind = kind.__base__
        if name == layer:
            break
        if not name:
            return False
        above.append((name, members))
    for name, members in reversed(above):
        kind = _subtype(kind, name, **members)
    module.__class__ = kind
    return True


def wears(module: nn.Module, layer: str | None = None) -> bool:
    """Whether a module has a layer, or any."""
    names = {vars(kind)["_layer"][0] for kind in type(module).__mro__ if "_layer" in vars(kind)}
    return bool(names) if layer is None else layer in names


@functools.cache  # the same type again, so that code that was compiled for it serves again
def _subtype(kind: Kind, layer: str, **members: Any) -> Kind:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**names, "_layer": (layer, members), **members})
