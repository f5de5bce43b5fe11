"""A digest of a model: all bytes of its weights and buffers, and what else of it a forward pass depends on."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..models import Identity, acts_of
from ._in_threads import in_threads
from ._told_apart import told_apart

PLAIN = (type(None), bool, int, float, str, torch.dtype)
PASSING = ("training", "name_or_path", "gradient_checkpointing")  # attributes that make no other model


def fingerprint(model: nn.Module) -> str:
    """A digest of a model.

    Every parameter and buffer counts with all its bytes (also those that no `state_dict` has), each module with its
    type, its plain attributes, its extra state, its hooks and a `forward` of its own, and the model's configuration.

    Raises:
        ValueError: weights are not in memory, or a part of the model cannot be told from others; it is named.
    """
    sha = hashlib.sha256()
    told: dict[int, str] = {}  # by id: the first name of a tensor, for tied weights are read once
    jobs: list[tuple[str, Any]] = [("the model's configuration", dict(Identity.of(model).config))]
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, value in _parts(prefix, module):
            if isinstance(value, Tensor) and id(value) in told:
                value = f"tied to {told[id(value)]}"
            elif isinstance(value, Tensor):
                told[id(value)] = name
            jobs.append((name, value))
    for (name, _), digest in zip(jobs, in_threads(lambda job: told_apart(job[1], job[0]), jobs), strict=True):
        sha.update(f"{len(name)} {name} {digest}".encode())
    return sha.hexdigest()


def _parts(prefix: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    kind = type(module)
    yield f"{prefix} type", f"{kind.__module__}.{kind.__qualname__}"
    dot = f"{prefix}." if prefix else ""
    for name, value in (*module._parameters.items(), *module._buffers.items()):
        yield f"{dot}{name}", _offloaded(module, name) if value is not None and value.is_meta else value
    for name, value in vars(module).items():
        if name in PASSING or name.startswith("_"):
            continue
        if _is_plain(value) or isinstance(value, Tensor):
            yield f"{dot}{name} (attribute)", value
        elif isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            yield f"{dot}{name} (function)", _function(value)
    acts = acts_of(module)
    hooks = [
        hook for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()) if hook is not acts
    ]
    for number, hook in enumerate([*hooks, *(acts.entries if acts else ()), vars(module).get("_erasure")]):
        yield f"{dot}hook {number}", _function(hook)
    if kind.get_extra_state is not nn.Module.get_extra_state:
        yield f"{dot}extra state", module.get_extra_state()
    if kind._save_to_state_dict is not nn.Module._save_to_state_dict:  # packed and quantised weights
        state: dict[str, Any] = {}
        module._save_to_state_dict(state, "", True)
        yield f"{dot}state", state


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _function(value: Any) -> Any:
    """A function by its code; another callable, or one that cannot be told from others, by the name of its kind."""
    try:
        return told_apart(value, "a hook")
    except ValueError:
        kind = value if isinstance(value, types.FunctionType) else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"


def _offloaded(module: nn.Module, name: str) -> Any:
    """The weight that accelerate fetches when the module runs; the empty one where nothing tells of it."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        weights = getattr(each, "weights_map", None)
        if weights is not None:
            return weights[name]
    return getattr(module, name)
