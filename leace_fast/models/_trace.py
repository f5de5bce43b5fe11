"""`Trace`: which outputs one forward pass makes, and which modules multiply them with weights of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ._channels import Channels
from ._modules import address_of, describe, hidden_of, is_hidden, run_example, with_hooks

ROWWISE = ("_to_copy", "clone", "mul", "masked_fill")  # operations that may keep rows: see `Trace.follow`


class Trace:
    """What one forward pass showed: outputs in order of execution, how often each ran, and who read them.

    Attributes:
        widths: of the modules that gave a float tensor, in the order in which they ran.
        calls: how often each of these, and of those that gave something else, ran.
        readers: of each, the modules that multiplied its output with a weight.
        refused: why a module cannot be a site.

    Args:
        model: run once, in evaluation mode and without gradients.
        example: a batch of the model, as in `find_sites`.
        kept: whether the output of a module, by its name and itself, is of interest.
    """

    def __init__(
        self, model: nn.Module, example: Mapping[str, Any] | Tensor, kept: Callable[[str, nn.Module], bool]
    ) -> None:
        self.widths: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.readers: dict[str, list[str]] = {}
        self.refused: dict[str, str] = {}
        self._names = {module: name for name, module in model.named_modules()}
        self._kept = kept
        self.channels = Channels()
        # by address; not kept alive, or memory would grow with depth: an address may be given to another tensor
        self._owners: dict[tuple[int, int], _Owner] = {}
        self._run(model, example)

    def follow(self, operands: Sequence[Any], output: Tensor) -> None:
        """An operation made `output` of its operands: the owner of one is that of the output if rows stay rows."""
        for operand, factors in zip(operands, ([*operands[1:]], [*operands[:1]]), strict=False):
            name = self._owner(operand) if isinstance(operand, Tensor) else None
            if (
                name
                and _address(output)[0]
                and operand.shape == output.shape
                and all(by_row(factor) for factor in factors)
            ):
                self._owners[_address(output)] = _Owner(name, StorageWeakRef(output.untyped_storage()), scaled=True)

    def has_own_space(self, norm: str) -> bool:
        """Whether a norm lies inside a module that reads one of another width, as in low-rank attention."""
        around = f"{norm.rpartition('.')[0]}."
        outer = [name for name, width in self.widths.items() if width != self.widths[norm]]
        read = [reader for name in outer if not name.startswith(around) for reader in self.readers[name]]
        return any(reader.startswith(around) for reader in read)

    def seen(self) -> str:
        """The first outputs and their readers, for errors."""
        norms = [f"{name} (read by {', '.join(self.readers[name]) or 'no linear layer'})" for name in self.widths]
        return f"seen: {'; '.join(norms[:8]) or 'no norm'}{' ...' if len(norms) > 8 else ''}"

    def _run(self, model: nn.Module, example: Mapping[str, Any] | Tensor) -> None:
        with with_hooks(((module, self._after) for module in self._names), with_kwargs=True), _Follow(self):
            run_example(model, example)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = self._names[module]
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                self._note_read(name, module, value)
        if self._kept(name, module):
            self._note_output(name, hidden_of(output))

    def _note_read(self, name: str, module: nn.Module, value: Tensor) -> None:
        source = self._owner(value)
        if source is None or name in self.readers[source]:
            return
        width = self.widths[source]
        if value.shape[-1:] == (width,) and _is_reader(module, width):  # heads joined into one are another space
            self.readers[source].append(name)

    def _note_output(self, name: str, output: Any) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if not is_hidden(output):
            self.refused[name] = f"its output is {describe(output)}, expected one float tensor"
            return
        axis = self.channels.axis_of(output)
        if axis is not None and axis < output.ndim - 1:
            self.refused[name] = (
                f"its output is {describe(output)}, whose channels lie in axis {axis} and whose last axis is time or "
                "space, expected (batch, ..., width)"
            )
            return
        self.widths[name] = output.shape[-1]
        self.readers.setdefault(name, [])
        # a wrapper that hands on the output of an inner norm reads nothing itself: the first owner stays
        found = self._found(output)
        if _address(output)[0] and output.numel() and (found is None or found.scaled):
            self._owners[_address(output)] = _Owner(name, StorageWeakRef(output.untyped_storage()))

    def _owner(self, tensor: Tensor) -> str | None:
        """The module whose output a tensor is, is a view of, or has the rows of, each times a number."""
        found = self._found(tensor)
        return found.name if found else None

    def _found(self, tensor: Tensor) -> _Owner | None:
        found = self._owners.get(_address(tensor))
        return found if found and not found.storage.expired() else None


class _Owner(NamedTuple):
    """Whose output a tensor is: itself, or (scaled) its rows in another dtype or each times a number, as of a mask."""

    name: str
    storage: StorageWeakRef
    scaled: bool = False


class _Follow(TorchDispatchMode):
    """Tells a trace of the operations that keep rows but for their dtype and a number for each."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.trace.channels.note(func, args, output)
        if func.overloadpacket.__name__ in ROWWISE and isinstance(output, Tensor):
            self.trace.follow(args[:2], output)
        return output


def by_row(factor: Any) -> bool:
    """Whether a factor, or a mask, is the same in all columns."""
    return not isinstance(factor, Tensor) or factor.ndim == 0 or factor.shape[-1] == 1


def _is_reader(module: nn.Module, width: int) -> bool:
    """Whether weights of the module's own multiply vectors of this width: linear layers, routers, fused experts."""
    weights = (parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 1)
    # quantized layers pack their weights into other shapes and say their width
    return getattr(module, "in_features", None) == width or any(width in weight.shape for weight in weights)


def _address(tensor: Tensor) -> tuple[int, int]:
    """Equal for views of all of one tensor, whatever their shape."""
    return address_of(tensor), tensor.numel()
