"""Sites: named places in a model where an eraser can act, found by tracing one forward pass.

Nothing here knows a model family. A site is a module whose output is one tensor of hidden states; the default
ones are the norms that feed the attention and the MLP of each layer, because an eraser there can be folded into
the linear layers that read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ._groups import GROUPS, find_places
from ._modules import describe, hidden_of, is_hidden, is_norm, run_example, unknown

ROWWISE = ("_to_copy", "clone", "mul", "masked_fill")  # operations that may keep rows: see `_Trace.follow`
EXPECTED = f"norms, {', '.join(GROUPS)}, names of modules or patterns"


@dataclass(frozen=True)
class Site:
    """A place in a model: the module `name`, its output's `width`, and the modules that read that very tensor.

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
        model: any module; it is run once, in evaluation mode and without gradients, and left as it was.
        example: a batch of the model, as keywords or as the one positional tensor; `concept_labels` is dropped.
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
    wanted = [sites] if isinstance(sites, str) else list(sites)
    if not wanted or not all(isinstance(name, str) for name in wanted):
        raise ValueError(f"sites must be {EXPECTED}, got {sites!r}")
    for group in [name for name in wanted if name in GROUPS]:
        wanted.remove(group)
        wanted += find_places(model, group, lambda: run_example(model, example))
    names = {module: name for name, module in model.named_modules()}
    for name in wanted:
        if name != "norms" and not any(name == known or fnmatchcase(known, name) for known in names.values()):
            raise ValueError(f"{unknown('site', name, names.values())}; expected {EXPECTED}")

    def kept(module: nn.Module) -> bool:
        return is_norm(module) or any(fnmatchcase(names[module], name) or names[module] == name for name in wanted)

    trace = _trace(model, example, names, kept)
    stack = _stack(names)
    inner = {name for name, readers in trace.readers.items() if any(reader.startswith(stack) for reader in readers)}
    norms = [name for name in trace.widths if is_norm(model.get_submodule(name)) and name in inner] if stack else []
    norms = [name for name in norms if not trace.has_own_space(name)]
    chosen: set[str] = set()
    for name in wanted:
        if name == "norms":
            chosen.update(norms)
        elif name in names.values():
            if name not in trace.widths:
                raise ValueError(f"{name!r} cannot be a site: {trace.refused.get(name, 'the example did not run it')}")
            chosen.add(name)
        else:
            matched = {known for known in trace.widths if fnmatchcase(known, name)}
            if not matched:
                raise ValueError(f"no module that matches {name!r} ran once and gave a float tensor; {trace.seen()}")
            chosen |= matched
    if not chosen:
        raise ValueError(
            f"no norm of this {type(model).__name__} is read by a layer of its stack; {trace.seen()}; choose "
            f"sites={', '.join(map(repr, GROUPS))} or modules by name"
        )
    for name in trace.widths:
        if name in chosen and trace.calls[name] > 1:
            raise ValueError(
                f"{name!r} ran {trace.calls[name]} times in one forward pass: a shared module holds several "
                "distributions, which one eraser cannot serve; choose other sites by name"
            )
    return [Site(name, width, tuple(trace.readers[name])) for name, width in trace.widths.items() if name in chosen]


def resolve_sites(
    model: nn.Module, example: Mapping[str, Any] | Tensor, sites: str | Iterable[str] | Iterable[Site]
) -> list[Site]:
    """The sites that a caller asked for: those that it has already, or what `find_sites` finds of the names.

    Args:
        model, example: as in `find_sites`; run only where there is something to find.
        sites: as in `find_sites`; or what it returned.

    Raises:
        ValueError: as `find_sites`, also for no site at all, and for names among `Site`s.

    >>> resolve_sites(nn.LayerNorm(4), {}, [Site("", 4)])
    [Site(name='', width=4, readers=())]
    """
    wanted: Any = sites if isinstance(sites, str) else list(sites)
    if wanted and all(isinstance(site, Site) for site in wanted):
        return wanted
    return find_sites(model, example, wanted)


class _Owner(NamedTuple):
    """Whose output a tensor is: itself, or (scaled) its rows in another dtype or each times a number, as of a mask."""

    name: str
    storage: StorageWeakRef
    scaled: bool = False


class _Trace:
    """What one forward pass showed: outputs in order of execution, how often each ran, and who read them."""

    def __init__(self) -> None:
        self.widths: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.readers: dict[str, list[str]] = {}
        self.refused: dict[str, str] = {}
        # by address; not kept alive, or memory would grow with depth: an address may be given to another tensor
        self._owners: dict[tuple[int, int], _Owner] = {}

    def owner(self, tensor: Tensor) -> str | None:
        """The module whose output a tensor is, is a view of, or has the rows of, each times a number."""
        found = self._found(tensor)
        return found.name if found else None

    def own(self, tensor: Tensor, name: str) -> None:
        # a wrapper that hands on the output of an inner norm reads nothing itself: the first owner stays
        found = self._found(tensor)
        if tensor.numel() and (found is None or found.scaled):
            self._owners[_address(tensor)] = _Owner(name, StorageWeakRef(tensor.untyped_storage()))

    def follow(self, operands: Sequence[Any], output: Tensor) -> None:
        """An operation made `output` of its operands: the owner of one is that of the output if rows stay rows."""
        for operand, factors in zip(operands, ([*operands[1:]], [*operands[:1]]), strict=False):
            name = self.owner(operand) if isinstance(operand, Tensor) else None
            if name and operand.shape == output.shape and all(by_row(factor) for factor in factors):
                self._owners[_address(output)] = _Owner(name, StorageWeakRef(output.untyped_storage()), scaled=True)

    def has_own_space(self, norm: str) -> bool:
        """Whether a norm lies inside a module that reads one of another width, as in low-rank attention."""
        around = f"{norm.rpartition('.')[0]}."
        outer = [name for name, width in self.widths.items() if width != self.widths[norm]]
        read = [reader for name in outer if not name.startswith(around) for reader in self.readers[name]]
        return any(reader.startswith(around) for reader in read)

    def _found(self, tensor: Tensor) -> _Owner | None:
        found = self._owners.get(_address(tensor))
        return found if found and not found.storage.expired() else None

    def seen(self) -> str:
        norms = [f"{name} (read by {', '.join(self.readers[name]) or 'no linear layer'})" for name in self.widths]
        return f"seen: {'; '.join(norms[:8]) or 'no norm'}{' ...' if len(norms) > 8 else ''}"


class _Follow(TorchDispatchMode):
    """Tells a trace of the operations that keep rows but for their dtype and a number for each."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ROWWISE and isinstance(output, Tensor):
            self.trace.follow(args[:2], output)
        return output


def by_row(factor: Any) -> bool:
    """Whether a factor, or a mask, is the same in all columns."""
    return not isinstance(factor, Tensor) or factor.ndim == 0 or factor.shape[-1] == 1


def _trace(model: nn.Module, example: Any, names: dict[nn.Module, str], kept: Callable[[nn.Module], bool]) -> _Trace:
    trace = _Trace()

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = names[module]
        for value in (*args, *kwargs.values()):
            source = trace.owner(value) if isinstance(value, Tensor) else None
            if source and name not in trace.readers[source]:
                width = trace.widths[source]  # heads joined into one vector are another space
                if value.shape[-1:] == (width,) and _is_reader(module, width):
                    trace.readers[source].append(name)
        if not kept(module):
            return
        trace.calls[name] = trace.calls.get(name, 0) + 1
        output = hidden_of(output)
        if not is_hidden(output):
            trace.refused[name] = f"its output is {describe(output)}, expected one float tensor"
            return
        trace.widths[name] = output.shape[-1]
        trace.readers.setdefault(name, [])
        trace.own(output, name)

    handles = []
    try:
        for module in names:
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        with _Follow(trace):
            run_example(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _is_reader(module: nn.Module, width: int) -> bool:
    """Whether weights of the module's own multiply vectors of this width: linear layers, routers, fused experts."""
    weights = (parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 1)
    # quantized layers pack their weights into other shapes and say their width
    return getattr(module, "in_features", None) == width or any(width in weight.shape for weight in weights)


def _address(tensor: Tensor) -> tuple[int, int]:
    """Equal for views of all of one tensor, whatever their shape."""
    return tensor.untyped_storage().data_ptr(), tensor.numel()


def _stack(names: dict[nn.Module, str]) -> tuple[str, ...]:
    """Prefixes of the names inside layers: the items of lists of modules. A bare head in a list has nothing inside."""
    lists = (nn.ModuleList, nn.Sequential)
    return tuple(f"{names[item]}." for module in names if isinstance(module, lists) for item in module)
