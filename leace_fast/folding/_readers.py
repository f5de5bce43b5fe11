"""What reads a site's output: every product with a weight, and everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..models import check_hooks, submodules
from ._read_trace import ReadTrace


@dataclass(frozen=True, order=True)
class Reader:
    """A weight that multiplies rows of a site.

    Attributes:
        module: name of the module that holds it.
        parameter: its name in the model; two axes or three, of which the first counts experts.
        axis: -1 or -2, the axis that the rows run along: -1 for `nn.Linear`, -2 for `Conv1D`.
        bias: name of the parameter that is added to the product, or None.
    """

    module: str
    parameter: str
    axis: int
    bias: str | None = None


@dataclass(frozen=True)
class Reading:
    """All that reads one site: weights, and others in words, such as "'model.layers.0' by add".

    `scaled` says that rows are read times a number each, such as 0 for padding: linear maps of x are linear maps of
    these too, but where an offset is zero a bias is not.
    """

    readers: tuple[Reader, ...]
    others: tuple[str, ...]
    scaled: bool = False


def readings_of(model: nn.Module, sites: Iterable[str], *examples: Mapping[str, Any] | Tensor) -> dict[str, Reading]:
    """Return what reads each site's output in one forward pass on each example, in order of the sites given.

    Modules of a list that did not run, such as experts that no token chose, count as their siblings that did. A
    weight that also serves something else than this site is no reader but one of the others.

    Raises:
        ValueError: an unknown site, or one that the example did not run exactly once.

    >>> import torch
    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    >>> readings_of(model, ["0"], torch.ones(1, 4))["0"].readers
    (Reader(module='1', parameter='1.weight', axis=-1, bias='1.bias'),)
    """
    check_hooks(model)
    modules = submodules(model, sites)
    trace = ReadTrace(model, modules)
    for example in examples:
        trace.run(example)
    siblings = _Siblings(model, trace.ran)
    readings = {}
    for site in modules:
        readers, others = set(), list(trace.others[site])
        for weight, axis in trace.products[site]:
            module, leaf = weight.rpartition(".")[::2]
            for twin in siblings.of(module, site):
                name = f"{twin}.{leaf}" if twin else leaf
                if name not in trace.aliases:
                    others.append(f"{twin!r}, which did not run and is unlike {module!r}")
                    continue
                readers.add(Reader(twin, name, axis, trace.bias_of(name, axis)))
                shared = trace.uses.get(trace.aliases[name], {site}) - {site}
                if shared:
                    users = ", ".join(sorted(shared))
                    others.append(f"{twin!r}, whose weight also serves {users}")
        readings[site] = Reading(tuple(sorted(readers)), tuple(dict.fromkeys(others)), site in trace.scaled)
    return readings


class _Siblings:
    """Modules of one list or dict that stand for each other: those that did not run, for one that did."""

    def __init__(self, model: nn.Module, ran: set[str]) -> None:
        self.modules = dict(model.named_modules())
        self.ran = ran

    def of(self, name: str, site: str) -> list[str]:
        """The module, and those in its place in idle siblings; other layers, which hold other sites, are none."""
        found, parts = [name], name.split(".")
        for i in range(1, len(parts)):
            parent, rest = ".".join(parts[:i]), parts[i + 1 :]
            if site.startswith(f"{parent}.") or not isinstance(self.modules[parent], (nn.ModuleList, nn.ModuleDict)):
                continue
            for key, _ in self.modules[parent].named_children():
                place = f"{parent}.{key}"
                idle = not any(other == place or other.startswith(f"{place}.") for other in self.ran)
                twin = ".".join([place, *rest])
                if idle and twin in self.modules:
                    found.append(twin)
        return found
