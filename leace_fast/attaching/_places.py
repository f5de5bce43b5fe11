"""Where erasers act in a model: the modules that sites name, through wrappers, or why none can act there."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..models import inner_name, submodules, unwrapped


def places(model: nn.Module, sites: Iterable[str]) -> dict[str, tuple[str, nn.Module]]:
    """The name and the module at which the eraser of each site acts.

    A name may be that of a model in wrappers where this one is in none, and the reverse. Of a module that an adapter
    keeps copies of, that is what holds the copies, as any of them may run.

    Args:
        model: in no wrapper itself; what it holds may be.
        sites: names of modules.

    Raises:
        ValueError: the model lacks a site, two of them are one place, or nothing can act there.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    inner = {inner_name(name): name for name in reversed(modules)}  # the outermost, which passes run
    found: dict[str, tuple[str, nn.Module]] = {}
    for site in sites:
        name = site if site in modules else inner.get(inner_name(site), "")
        if name not in modules or (not name and inner_name(site)):
            submodules(model, [site])  # says what the model lacks
        name = _of_copies(modules, site, name)
        module = unwrapped(modules[name])
        name = next(each for each, known in modules.items() if known is module and each.startswith(name))
        _check(model, site, name)
        if twin := next((other for other, (place, _) in found.items() if place == name), None):
            raise ValueError(f"the sites {twin!r} and {site!r} are one module here: drop one")
        found[site] = name, module
    return found


def _of_copies(modules: dict[str, nn.Module], site: str, name: str) -> str:
    """The name of what holds the copies that an adapter keeps of a module; the name itself for any other module."""
    other: Any = sys.modules.get("peft.utils.other")
    for above in _prefixes(name):
        if other is not None and isinstance(modules[above], other.AuxiliaryTrainingWrapper) and above != name:
            copy = name[len(above) :].lstrip(".")
            if copy.count(".") != (0 if copy.startswith("original_module") else 1):
                raise ValueError(
                    f"{site!r} lies in one of several copies that an adapter keeps of {above!r}, and any of them may "
                    "run: merge the adapter (merge_and_unload), or fit an eraser at that module"
                )
            return above
    return name


def _check(model: nn.Module, site: str, name: str) -> None:
    """Raise ValueError for a place that no eraser can act at."""
    module = model
    for each in (None, *(name.split(".") if name else ())):
        module = module if each is None else module.get_submodule(each)
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{site!r} is in a scripted or traced module, which runs no Python: attach to the model that it was "
                "made of, and trace that again"
            )
        if getattr(module, "compatibility_mode", False) is True and hasattr(module, "original_component"):
            raise ValueError(
                f"{site!r} is in a TransformerBridge in compatibility mode, where norms put out other rows than those "
                "that erasers were fitted on: use leace_fast.integrations.transformer_lens_hooks"
            )


def _prefixes(name: str) -> Iterator[str]:
    """The names of a module and of all that hold it, from the model down."""
    yield ""
    parts = name.split(".") if name else []
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
