"""Sites: named places in a model where an eraser can act, found by tracing one forward pass.

Nothing here knows a model family. A site is a module whose output is one tensor of hidden states; the default
ones are the norms that feed the attention and the MLP of each layer, because an eraser there can be folded into
the linear layers that read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ._axes import check_axes
from ._groups import PLACES, find_places
from ._inside import Inside
from ._modules import check_hooks, is_norm, items_of, run_example, unknown
from ._sequences import traced_on_few
from ._trace import Trace

EXPECTED = f"norms, {', '.join(PLACES)}, names of modules or patterns"


@dataclass(frozen=True)
class Site:
    """A place in a model where an eraser can act: the output of one module.

    Attributes:
        name: of the module.
        width: of its output, (..., width).
        readers: names of the modules that read that very tensor.

    >>> Site("model.layers.0.input_layernorm", 768, ("model.layers.0.self_attn.q_proj",)).width
    768
    """

    name: str
    width: int
    readers: tuple[str, ...] = ()


def find_sites(
    model: nn.Module, example: Mapping[str, Any] | Tensor, sites: str | Iterable[str] = "norms"
) -> list[Site]:
    """The sites of `model`, in the order in which one forward pass on `example` runs them.

    Args:
        model: any module; it is run in evaluation mode and without gradients, and left as it was. Inside of
            DataParallel, PEFT and the like the model that they hold is run; the names are those of what was given.
        example: a batch of the model, as keywords or as the one positional tensor; `concept_labels` is dropped. Of a
            batch its first two sequences are run, and all where these fail, miss a module with weights, or cannot be
            told from the rest; of each group of places, one pass more.
        sites: "norms" (every norm whose output a linear layer of the layer stack reads: the inputs of attention
            and MLP, not the narrower space inside a low-rank attention), "residual" (the layers' outputs),
            "attention_out" or "mlp_out" (what these add to it), a module's name, a pattern such as
            "model.layers.*.mlp" ("*" also crosses dots), or several of these.

    Raises:
        ValueError: a name or pattern that no module has (the nearest names are offered), a module that runs more
            than once in a pass or whose output is no float tensor, or a model in which nothing is found.

    >>> import torch
    >>> layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2))
    >>> [site.name for site in find_sites(nn.Sequential(*layers), torch.ones(1, 3, 4))]
    ['0.0', '1.0']
    """
    inside = Inside(model)
    check_hooks(inside.model)
    wanted = [sites] if isinstance(sites, str) else list(sites)
    if not wanted or not all(isinstance(name, str) for name in wanted):
        raise ValueError(f"sites must be {EXPECTED}, got {sites!r}")
    wanted, model = inside.sites(wanted), inside.model
    return inside.given_sites(traced_on_few(model, example, lambda few: _found(model, few, wanted)))


def resolve_sites(
    model: nn.Module,
    example: Mapping[str, Any] | Tensor,
    sites: str | Iterable[str] | Iterable[Site],
    by_token: bool = False,
) -> list[Site]:
    """The sites that a caller asked for, whose rows are to have labels: those that it has, or what `find_sites` finds.

    Args:
        model, example: as in `find_sites`.
        sites: as in `find_sites`; or what it returned.
        by_token: whether each token has a label, not each sequence.

    Raises:
        ValueError: as `find_sites`, also for no site at all, and for names among `Site`s; or the rows of a site are
            not (batch, ..., width) in the order of the sequences and, for labels by token, of these.

    >>> resolve_sites(nn.LayerNorm(4), {}, [Site("", 4)])
    [Site(name='', width=4, readers=())]
    """
    wanted: Any = sites if isinstance(sites, str) else list(sites)
    if not wanted or not all(isinstance(site, Site) for site in wanted):
        wanted = find_sites(model, example, wanted)
    check_axes(model, example, [site.name for site in wanted], by_token)
    return wanted


def _found(model: nn.Module, example: Mapping[str, Any] | Tensor, wanted: list[str]) -> list[Site]:
    """The sites that one pass on an example shows, as `find_sites`."""
    wanted = _without_groups(model, example, wanted)
    names = {module: name for name, module in model.named_modules()}
    for name in wanted:
        if name != "norms" and not _matching(name, names.values()):
            raise ValueError(f"{unknown('site', name, names.values())}; expected {EXPECTED}")
    named = {module for name in wanted for module in _matching(name, names.values())}
    trace = Trace(model, example, lambda name, module: is_norm(module) or name in named)
    norms = _norms_of_layers(trace, names)
    chosen: set[str] = set()
    for name in wanted:
        chosen |= norms if name == "norms" else _named(trace, name, set(names.values()))
    if not chosen:
        raise ValueError(
            f"no norm of this {type(model).__name__} is read by a layer of its stack; {trace.seen()}; choose "
            f"sites={', '.join(map(repr, PLACES))} or modules by name"
        )
    return [_site(trace, name) for name in trace.widths if name in chosen]


def _without_groups(model: nn.Module, example: Any, wanted: list[str]) -> list[str]:
    """Names and patterns, those of a group in its place."""
    groups = [name for name in wanted if name in PLACES]
    places = [find_places(model, group, lambda: run_example(model, example)) for group in groups]
    return [name for name in wanted if name not in PLACES] + [name for found in places for name in found]


def _norms_of_layers(trace: Trace, names: dict[nn.Module, str]) -> set[str]:
    """The norms that a module inside a layer reads, and that lie in no narrower space of a layer's own."""
    inside = tuple(f"{names[item]}." for module in names for item in items_of(module))
    norms = [name for module, name in names.items() if is_norm(module) and name in trace.widths]
    read = [name for name in norms if any(reader.startswith(inside) for reader in trace.readers[name])]
    return {name for name in read if not trace.has_own_space(name)}


def _named(trace: Trace, name: str, known: set[str]) -> set[str]:
    """The module of a name, or all of a pattern that ran and gave a float tensor."""
    if name in known:
        if name not in trace.widths:
            raise ValueError(f"{name!r} cannot be a site: {trace.refused.get(name, 'the example did not run it')}")
        return {name}
    matched = _matching(name, trace.widths)
    if not matched:
        refused = next((f"{each!r}: {trace.refused[each]}" for each in _matching(name, trace.refused)), trace.seen())
        raise ValueError(f"no module that matches {name!r} ran once and gave a float tensor of rows; {refused}")
    return matched


def _matching(name: str, known: Iterable[str]) -> set[str]:
    """The known names that a name, or a pattern, means."""
    return {each for each in known if each == name or fnmatchcase(each, name)}


def _site(trace: Trace, name: str) -> Site:
    if trace.calls[name] > 1:
        raise ValueError(
            f"{name!r} ran {trace.calls[name]} times in one forward pass: a shared module holds several "
            "distributions, which one eraser cannot serve; choose other sites by name"
        )
    return Site(name, trace.widths[name], tuple(trace.readers[name]))
