"""What writes to the residual stream: embeddings and linear layers whose sum the norms read, seen op by op."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..models import check_hooks, is_norm, run_example
from ._calls import PRODUCTS, Call, memory_of, tensors_in, whole_rows


@dataclass(frozen=True, order=True)
class Writer:
    """A term of the stream: rows of an embedding, or the output of a linear layer, along an axis of its weight."""

    module: str
    parameter: str
    is_table: bool
    axis: int = -1


class Stream(TorchDispatchMode):
    """Follows sums of embeddings and of outputs of linear layers, by the memory that they lie in, to the norms."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.width = model, width
        self.names = dict(model.named_parameters(remove_duplicate=False))
        self.parameters = {memory_of(parameter): name for name, parameter in model.named_parameters()}
        if hidden := self.parameters.pop(-1, None):
            if self.names[hidden].is_meta:
                raise ValueError(f"{hidden!r} is on the meta device (offloaded): load the model into memory to fold it")
            raise ValueError(
                f"{hidden!r} is a {type(self.names[hidden].data).__name__} without memory of its own, by which what "
                "writes to the residual stream is followed: fold before quantising or sharding"
            )
        self.terms: dict[int, frozenset[Writer]] = {}
        self.kept: list[Tensor] = []  # alive, lest their memory be given to others
        self.elsewhere: dict[Writer, str] = {}  # terms that are read before they reach the stream
        self.multiplied: dict[str, set[str]] = {}  # weight -> modules in which rows are multiplied with it
        self.norms: dict[str, frozenset[Writer]] = {}
        self.stack = [""]

    def run(self, example: Any) -> None:
        check_hooks(self.model)
        handles = []
        try:
            for name, module in self.model.named_modules():
                handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                handles.append(module.register_forward_hook(lambda *_: self.stack.pop() and None))
            with self:
                run_example(self.model, example)
        finally:
            for handle in handles:
                handle.remove()

    def writers(self) -> tuple[list[Writer], Writer]:
        """All terms of the stream, and the embedding that takes the offset, as it is in every position."""
        if not self.norms:
            raise ValueError(f"no norm of this model reads rows of width {self.width}: it has no residual stream")
        found = sorted(frozenset().union(*self.norms.values()))
        for writer in found:
            if writer in self.elsewhere:
                raise ValueError(f"{writer.module!r} writes to the stream and is read by {self.elsewhere[writer]} too")
        for one, two in itertools.combinations(found, 2):
            if self.names[one.parameter] is self.names[two.parameter]:
                raise ValueError(f"{one.module!r} and {two.module!r} share a weight: it cannot be folded for both")
        tables = [w for w in found if w.is_table and all(w in terms for terms in self.norms.values())]
        if not tables:
            raise ValueError("no embedding is in every position of the stream: the offset has no place")
        return found, tables[0]

    def heads(self, writers: Iterable[Writer]) -> list[tuple[str, str]]:
        """Weights of other modules that are an embedding's too, which must be untied, and that embedding's."""
        found = []
        for writer in writers:
            for user in sorted(self.multiplied.get(writer.parameter, ())) if writer.is_table else ():
                name = f"{user}.weight"
                if self.names.get(name) is not self.names[writer.parameter] or name == writer.parameter:
                    raise ValueError(f"{user!r} multiplies with the weight of {writer.module!r}: it cannot be untied")
                found.append((name, writer.parameter))
        return found

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append(name)
            rows = [tensor for tensor in tensors_in((args, kwargs)) if tensor.shape[-1:] == (self.width,)]
            if not is_norm(module) or not rows:
                return
            terms = self.terms.get(memory_of(rows[0]), frozenset())
            if any(term.is_table for term in terms):
                self.norms[name] = terms
            elif not terms:
                raise ValueError(
                    f"{name!r} reads what is no sum of embeddings and outputs of linear layers: the residual stream "
                    "of this model cannot be folded; fold at the norms, or attach the scrubber"
                )

        return enter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        call = Call(func, args, kwargs, output)
        terms = [tensor for tensor in call.inputs if memory_of(tensor) in self.terms]
        new = self._written(call.name, args)
        if new is not None:
            self._mark(terms, call.name)
            if call.outputs[0].shape[-1] == self.width:
                self._keep(call.outputs[0], frozenset([new]))
        elif terms and not call.reads_no_values:
            handed_on = self._handed_on(call, terms)
            if handed_on is None:
                self._mark(terms, call.name)
            else:
                self._keep(call.outputs[0], handed_on)
        return output

    def _handed_on(self, call: Call, terms: list[Tensor]) -> frozenset[Writer] | None:
        """The terms whose sum an operation gives out; None where it reads them in another way."""
        if call.copies_rows and len(terms) == 1 and whole_rows(call.outputs[0], -1, self.width):
            return self._terms(terms[0])
        if call.name in ("add", "add_") and len(terms) == len(call.args) == 2 and not call.kwargs:
            return self._terms(terms[0]) | self._terms(terms[1])
        if call.name in ("mul", "div") and self._is_pure(terms[0]) and not tensors_in(call.args[1:]):
            return self._terms(terms[0])  # a number: P commutes with it
        return None

    def _written(self, name: str, args: Any) -> Writer | None:
        """The weight whose rows or columns an operation gives out, if it is one of the model's."""
        if name == "embedding" and memory_of(args[0]) in self.parameters:
            return self._writer(args[0], True, -1)
        if name not in PRODUCTS:
            return None
        one, two, _, two_axis = PRODUCTS[name]
        weight = args[two]
        if memory_of(weight) not in self.parameters or memory_of(args[one]) in self.parameters:
            return None
        base = self.names[self.parameters[memory_of(weight)]]
        self.multiplied.setdefault(self.parameters[memory_of(weight)], set()).add(self.stack[-1])
        out = -2 if two_axis == -1 else -1
        if base.ndim != 2 or weight.ndim < 2:
            return None
        written = weight.shape[out], weight.stride(out)
        axes = [axis for axis in (-1, -2) if (base.shape[axis], base.stride(axis)) == written]
        return self._writer(weight, False, axes[0]) if axes else None

    def _writer(self, weight: Tensor, is_table: bool, axis: int) -> Writer:
        name = self.parameters[memory_of(weight)]
        here = f"{self.stack[-1]}.weight"
        if self.names.get(here) is self.names[name]:
            name = name if is_table else here
        return Writer(self.stack[-1], name, is_table, axis)

    def _keep(self, tensor: Tensor, terms: frozenset[Writer]) -> None:
        self.kept.append(tensor)
        self.terms[memory_of(tensor)] = terms

    def _terms(self, tensor: Tensor) -> frozenset[Writer]:
        return self.terms[memory_of(tensor)]

    def _is_pure(self, tensor: Tensor) -> bool:
        return not any(term.is_table for term in self._terms(tensor))

    def _mark(self, tensors: Iterable[Tensor], name: str) -> None:
        """Note terms that are read outside of the stream; what reads the stream itself may."""
        for tensor in tensors:
            if self._is_pure(tensor):
                for term in self._terms(tensor):
                    self.elsewhere.setdefault(term, f"{self.stack[-1] or 'the model'!r} by {name}")
