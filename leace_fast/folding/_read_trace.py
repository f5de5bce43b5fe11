"""`ReadTrace`: everything that a forward pass does with the outputs of sites and with weights, seen op by op.

Nothing here knows a model family: rows are followed through views and copies to the operations that consume them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..models import by_row, is_hidden, run_example
from ._calls import PRODUCTS, Call, memory_of, tensors_in, whole_rows

SCALES = ("mul", "masked_fill")  # new tensors of the same rows, each times a number, if the factor is one for each row


class ReadTrace(TorchDispatchMode):
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
            if parameter.ndim > 1 and memory_of(parameter) >= 0:
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
        if output.numel() and memory_of(output) < 0:
            raise ValueError(
                f"the output of {site!r} is a {type(output).__name__} without memory of its own, by which what reads "
                "it is followed: fold before sharding, or attach the scrubber"
            )
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
        call = Call(func, args, kwargs, output)
        rows = [tensor for tensor in call.inputs if memory_of(tensor) in self.rows]
        weights = [tensor for tensor in call.inputs if self._weight(tensor)]
        if (rows or weights) and not self._hands_on(call, rows, weights):
            self._note_use(call, rows, weights)
        return output

    def _hands_on(self, call: Call, rows: list[Tensor], weights: list[Tensor]) -> bool:
        """Whether the output holds no more than rows of a site, or a weight, which are followed."""
        if call.reads_no_values or (call.copies_rows and self._copy(call, rows, weights)):
            return True
        return call.name in SCALES and self._scale(call)

    def _note_use(self, call: Call, rows: list[Tensor], weights: list[Tensor]) -> None:
        """Rows of a site times a weight are a product to fold into; rows and weights in other operations are not."""
        user = f"{self.stack[-1] or 'the model'!r} by {call.name}"
        read = self._product(call) if rows else None
        for tensor in rows:
            if tensor is not read:
                self.others[self.rows[memory_of(tensor)][0]].append(user)
        serves = user if read is None else self.rows[memory_of(read)][0]
        for tensor in weights:
            self.uses.setdefault(self._weight(tensor)[0], set()).add(serves)  # type: ignore[index]

    def _copy(self, call: Call, rows: list[Tensor], weights: list[Tensor]) -> bool:
        """Whether the output holds whole rows of one site, or whole matrices of one weight; both are followed."""
        output, floating = call.outputs[0], [tensor for tensor in call.inputs if tensor.is_floating_point()]
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

    def _scale(self, call: Call) -> bool:
        """Whether the output holds whole rows of one site, each times a number, which are followed."""
        args, output = call.args, call.outputs[0]
        if call.name == "masked_fill" and bool(args[2] != 0):
            return False
        for rows, factor in (args[:2], args[1::-1]) if call.name == "mul" else (args[:2],):
            if memory_of(rows) not in self.rows or not by_row(factor):
                continue
            site, width = self.rows[memory_of(rows)]
            free = memory_of(factor) not in self.rows and not self._weight(factor)
            if free and rows.shape == output.shape and whole_rows(rows, -1, width) and whole_rows(output, -1, width):
                self._keep(output, (site, width))
                self.scaled.add(site)
                return True
        return False

    def _product(self, call: Call) -> Tensor | None:
        """The operand that holds rows of a site, if the other one is a weight whose axis of their width is summed."""
        if call.name not in PRODUCTS and "grouped_mm" not in call.name:
            return None
        one, two, one_axis, two_axis = PRODUCTS.get(call.name, (0, 1, -1, -2))
        sides = (call.args[one], one_axis), (call.args[two], two_axis)
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
