"""What reads a site's output: every product with a weight, and everything else, seen op by op in one forward pass.

Nothing here knows a model family: rows are followed through views and copies to the operations that consume them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models import by_row, is_hidden, run_example, submodules

# operands of products, and the axes that they sum over
PRODUCTS = {"mm": (0, 1, -1, -2), "addmm": (1, 2, -1, -2), "bmm": (0, 1, -1, -2), "baddbmm": (1, 2, -1, -2)}
PRODUCTS |= {"linear": (0, 1, -1, -1), "mv": (0, 1, -1, -1), "addmv": (1, 2, -1, -1), "matmul": (0, 1, -1, -2)}
# new tensors that hold whole rows of the old one, once or more often, maybe in another dtype
COPIES = {"clone", "_to_copy", "index", "index_select", "cat", "stack", "repeat", "contiguous", "expand_copy"}
SCALES = ("mul", "masked_fill")  # new tensors of the same rows, each times a number, if the factor is one for each row
NO_VALUES = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "new_zeros", "new_ones", "new_empty"}
NO_VALUES |= {"new_full", "new_empty_strided", "sym_size", "sym_stride", "sym_numel", "is_same_size"}


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
    modules = submodules(model, sites)
    trace = _Trace(model, modules)
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


class _Trace(TorchDispatchMode):
    """Follows rows of sites, and weights, by the memory that they lie in."""

    def __init__(self, model: nn.Module, sites: dict[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.sites = {module: name for name, module in sites.items()}
        self.products: dict[str, set[tuple[str, int]]] = {name: set() for name in sites}
        self.others: dict[str, list[str]] = {name: [] for name in sites}
        self.scaled: set[str] = set()
        self.uses: dict[str, set[str]] = {}  # weight -> sites, or modules that use it in another way
        self.ran: set[str] = set()
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        first = {parameter: name for name, parameter in reversed(self.parameters.items())}
        self.aliases = {name: first[parameter] for name, parameter in self.parameters.items()}

    def run(self, example: Any) -> None:
        self.rows: dict[int, tuple[str, int]] = {}  # memory -> site, width
        self.weights: dict[int, list[tuple[str, Tensor]]] = {}  # memory -> weights, or copies of them, that lie in it
        for name, parameter in self.model.named_parameters():
            if parameter.ndim > 1 and parameter.numel():
                self.weights.setdefault(memory_of(parameter), []).append((name, parameter))
        self.kept: list[Tensor] = []  # alive, lest their memory be given to others
        self.stack = [""]
        handles = []
        try:
            for name, module in self.model.named_modules():
                handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True))
                if module in self.sites:  # before other hooks: what they do to the output must be seen
                    handles.append(module.register_forward_hook(self._begin, prepend=True))
                handles.append(module.register_forward_hook(self._leave))
            with self:
                output = run_example(self.model, example)
        finally:
            for handle in handles:
                handle.remove()
        for site in {self.rows[memory_of(t)][0] for t in tensors_in(output) if memory_of(t) in self.rows}:
            self.others[site].append("the output of the model")
        counts = [site for site, _ in self.rows.values()]
        for site in self.others:
            if site not in counts:
                raise ValueError(f"{site!r} cannot be a site: the example did not run it")

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            self.stack.append(name)
            self.ran.add(name)

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()

    def _begin(self, module: nn.Module, args: Any, output: Any) -> None:
        site = self.sites[module]
        if not is_hidden(output):
            raise ValueError(f"the output of {site!r} is a {type(output).__name__}, expected one float tensor")
        if any(site == other for other, _ in self.rows.values()):
            raise ValueError(f"{site!r} ran more than once in one forward pass: choose sites that run once")
        if not whole_rows(output, -1, output.shape[-1]):
            self.others[site].append(f"{site!r}, whose output does not lie in memory row by row")
        if memory_of(output) in self.rows:
            self.others[site].append(f"{self.rows[memory_of(output)][0]!r}, a site whose output is the same tensor")
        self._keep(output, (site, output.shape[-1]))

    def _keep(self, rows: Tensor, owner: tuple[str, int]) -> None:
        self.kept.append(rows)
        self.rows[memory_of(rows)] = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = tensors_in((args, kwargs))
        rows = [tensor for tensor in inputs if memory_of(tensor) in self.rows]
        weights = [tensor for tensor in inputs if self._weight(tensor)]
        if not rows and not weights:
            return output
        name = func.overloadpacket.__name__
        outputs = tensors_in(output)
        same_memory = {memory_of(tensor) for tensor in inputs}
        is_view = outputs and not func._schema.is_mutable and {memory_of(t) for t in outputs} <= same_memory
        if is_view or name in NO_VALUES:
            return output
        if name in COPIES and not mixes(name, args) and self._copy(rows, weights, inputs, outputs[0]):
            return output
        if name in SCALES and self._scale(name, args, output):
            return output
        read = self._product(name, args) if rows else None
        for tensor in rows:
            if tensor is not read:
                self.others[self.rows[memory_of(tensor)][0]].append(f"{self.stack[-1] or 'the model'!r} by {name}")
        for tensor in weights:
            user = self.rows[memory_of(read)][0] if read is not None else f"{self.stack[-1] or 'the model'!r} by {name}"
            self.uses.setdefault(self._weight(tensor)[0], set()).add(user)  # type: ignore[index]
        return output

    def _copy(self, rows: list[Tensor], weights: list[Tensor], inputs: list[Tensor], output: Tensor) -> bool:
        """Whether the output holds whole rows of one site, or whole matrices of one weight; both are followed."""
        floating = [tensor for tensor in inputs if tensor.is_floating_point()]
        if rows and len(rows) == len(floating):
            site, width = self.rows[memory_of(rows[0])]
            whole = all(whole_rows(tensor, -1, width) for tensor in (*rows, output))
            if whole and {self.rows[memory_of(tensor)][0] for tensor in rows} == {site}:
                self._keep(output, (site, width))
                return True
        if len(weights) == len(floating) == 1:
            name, base = self._weight(weights[0])  # type: ignore[misc]
            if output.ndim >= 2 and output.shape[-2:] == base.shape[-2:] == weights[0].shape[-2:]:
                self.kept.append(output)
                self.weights.setdefault(memory_of(output), []).append((name, output))
                return True
        return False

    def _scale(self, name: str, args: Any, output: Tensor) -> bool:
        """Whether the output holds whole rows of one site, each times a number, which are followed."""
        if name == "masked_fill" and bool(args[2] != 0):
            return False
        for rows, factor in (args[:2], args[1::-1]) if name == "mul" else (args[:2],):
            if memory_of(rows) not in self.rows or not by_row(factor):
                continue
            site, width = self.rows[memory_of(rows)]
            free = memory_of(factor) not in self.rows and not self._weight(factor)
            if free and rows.shape == output.shape and whole_rows(rows, -1, width) and whole_rows(output, -1, width):
                self._keep(output, (site, width))
                self.scaled.add(site)
                return True
        return False

    def _product(self, name: str, args: Any) -> Tensor | None:
        """The operand that holds rows of a site, if the other one is a weight whose axis of their width is summed."""
        if name not in PRODUCTS and "grouped_mm" not in name:
            return None
        one, two, one_axis, two_axis = PRODUCTS.get(name, (0, 1, -1, -2))
        sides = (args[one], one_axis), (args[two], two_axis)
        for (x, x_axis), (weight, axis) in (sides, sides[::-1]):
            found = self._weight(weight)
            if memory_of(x) not in self.rows or found is None:
                continue
            site, width = self.rows[memory_of(x)]
            base = found[1]
            along = [a for a in (-1, -2) if (base.shape[a], base.stride(a)) == (width, weight.stride(axis))]
            if whole_rows(x, x_axis, width) and weight.shape[axis] == width and along:
                # of a tied weight the name in the module that runs
                names = [n for n in self.aliases if self.aliases[n] == found[0]]
                here = [n for n in names if n.rpartition(".")[0] == self.stack[-1]]
                self.products[site].add(((here or names)[0], along[0]))
                return x
        return None

    def _weight(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """The name of the parameter that a tensor is a part of, and the parameter or its copy."""
        for name, base in self.weights.get(memory_of(tensor), ()):
            if 0 <= tensor.storage_offset() - base.storage_offset() < max(base.numel(), 1):
                return name, base
        return None

    def bias_of(self, weight: str, axis: int) -> str | None:
        shape = list(self.parameters[weight].shape)
        del shape[axis]
        names = [f"{weight}_bias"] + ([f"{weight[: -len('weight')]}bias"] if weight.endswith("weight") else [])
        fits = [n for n in names if n in self.parameters and list(self.parameters[n].shape) == shape]
        return fits[0] if fits else None


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


def whole_rows(tensor: Tensor, axis: int, width: int) -> bool:
    """Whether a view cuts its memory into whole rows of a width that run along an axis."""
    if tensor.ndim < -axis or tensor.shape[axis] != width or (width > 1 and tensor.stride(axis) != 1):
        return False
    others = [i for i in range(tensor.ndim) if i != tensor.ndim + axis and tensor.shape[i] > 1]
    return tensor.storage_offset() % width == 0 and all(tensor.stride(i) % width == 0 for i in others)


def mixes(name: str, args: Any) -> bool:
    """Whether a copy picks along the last axis, and so may hold the columns in another order."""
    if name == "index":
        return len(args[1]) == args[0].ndim and args[1][-1] is not None
    return name == "index_select" and args[1] % args[0].ndim == args[0].ndim - 1


def memory_of(tensor: Any) -> int:
    """What tensors that share their memory have in common; -1 for what has none."""
    if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel():
        return -1
    return tensor.untyped_storage().data_ptr()


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested values."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
