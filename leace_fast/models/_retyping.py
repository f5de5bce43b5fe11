"""Modules that have another type for a while, so that compiled code sees that they behave otherwise.

Compiled code is guarded by the types of the modules that it met. It does not look for hooks where it found none, nor
for a `forward` that was set on an instance, and would silently run without them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

Kind = type[nn.Module]
Make = Callable[[Kind], Any]  # from the type below to a member of the subtype
Layers = list[tuple[str, dict[str, Make]]]


def put_on(module: nn.Module, layer: str, **members: Make) -> None:
    """Give a module a subtype of its type, of the same name, with other members; layers may lie on each other.

    Copies and pickles of the module have it too.

    Args:
        module: becomes an instance of the subtype.
        layer: a name by which to take the subtype off again.
        members: functions of a module of Python, by which pickles know them, from the type below to each member.

    Raises:
        TypeError: the type cannot change, as one with slots or of a scripted module; nothing has changed.

    >>> import torch
    >>> norm = nn.LayerNorm(2)
    >>> put_on(norm, "doubled", forward=lambda kind: lambda self, x: 2 * x)
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
    above: Layers = []
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
def _subtype(kind: Kind, layer: str, **members: Make) -> Kind:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    names |= {"_layer": (layer, members), "__reduce_ex__": _reduce}
    if hasattr(kind, "__deepcopy__"):
        names["__deepcopy__"] = _deep_copy
    return type(kind.__name__, (kind,), {**names, **{name: make(kind) for name, make in members.items()}})


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """How to copy or pickle a module with layers: no name leads to its type, but one does to that below them."""
    kind, layers = _below(module)
    make, args, *state = kind.__reduce_ex__(module, protocol)
    if not args or args[0] is not type(module):
        raise _own_way(kind)
    if "_layer" not in vars(type(module)):  # another library's type lies above: theirs to copy or to refuse
        return make, args, *state
    return _layered, (layers, make, kind, *args[1:]), *state


def _deep_copy(module: nn.Module, memo: Any) -> nn.Module:
    kind: Any = _below(module)[0]
    copied = kind.__deepcopy__(module, memo)
    if type(copied) is not type(module):
        raise _own_way(kind)
    return copied


def _below(module: nn.Module) -> tuple[Kind, Layers]:
    """The type below the uppermost layers of a module, and these from below."""
    kind: Any = next(kind for kind in type(module).__mro__ if "_layer" in vars(kind))
    layers = []
    while "_layer" in vars(kind):
        layers.insert(0, vars(kind)["_layer"])
        kind = kind.__base__
    return kind, layers


def _layered(layers: Layers, make: Callable[..., Any], *args: Any) -> Any:
    module = make(*args)
    for layer, members in layers:
        put_on(module, layer, **members)
    return module


def _own_way(kind: Kind) -> TypeError:
    return TypeError(
        f"a {kind.__name__} has its own way of being copied or pickled, which would lose the erasers or recordings "
        "that are attached to it: detach them first"
    )
