"""`fold_residual_`: one eraser for the whole residual stream, folded into the embedding and all that writes to it.

With `e(x) = P x + L R mu`, `P = I - L R` and `x = E + sum of W_i y_i`: `e(x) = (P E + L R mu) + sum of P W_i y_i`. So
the stream is erased at every position, between attention and MLP too, where no module could hold a hook.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .edits import Edits, check_weight
from .eraser import Eraser
from .fold import FOLDED, FoldReport, check_agrees, example_of, output_of, share, undone_on_error
from .readers import COPIES, NO_VALUES, PRODUCTS, memory_of, mixes, tensors_in, whole_rows
from .sites import forget_compiled, is_norm, run_example, tap, tapped

STREAM = "residual stream"


@dataclass(frozen=True, order=True)
class Writer:
    """A term of the stream: rows of an embedding, or the output of a linear layer, along an axis of its weight."""

    module: str
    parameter: str
    is_table: bool
    axis: int = -1


def fold_residual_(
    model: nn.Module,
    eraser: Eraser,
    example: Mapping[str, Any] | Tensor | None = None,
    *,
    keep_originals: bool = True,
) -> FoldReport:
    """Fold one eraser, the same at every residual position, into the embeddings and all linear layers that write.

    No offset is lost and no layer needs a bias. A head that shares the embedding's weight gets its own. Every norm
    that reads the stream must see a sum of embeddings and outputs of linear layers: norms after attention or MLP,
    and experts, are refused.

    Args:
        model: changed in place; on any failure it is restored to the bit.
        eraser: for rows of the stream, of strength 1.
        example: a batch, as in `find_sites`; None for the model's own `dummy_inputs`.
        keep_originals: as in `fold_`.

    Returns:
        As `fold_`; `leak` is the largest share of what the eraser reads that is left at the input of a norm.

    Raises:
        ValueError: something else writes to the stream, or a writer is also read elsewhere; it is named.
        RuntimeError: the folded model does not do what hooks on the writers do, or a norm still reads the concept.

    >>> block = nn.Sequential(nn.Embedding(8, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    >>> eraser = Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1], torch.ones(4))
    >>> report = fold_residual_(block, eraser, torch.arange(8))
    >>> block[0].weight[:, 0].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    if any(module in FOLDED for module in model.modules()):
        raise ValueError("this model is folded already: unfold_ it first")
    if tapped(model):
        raise ValueError("erasers or recordings are attached to this model: leave their `with` block before folding")
    left, right = eraser.left.double(), eraser.right.double()
    if _excess(left, right) > 1e-3:
        raise ValueError("only an eraser of strength 1 gives the same at every position: R L must be the identity")
    example = example_of(model) if example is None else example
    stream = _Stream(model, eraser.dim)
    stream.run(example)
    writers, offset = stream.writers()
    for writer in writers:
        check_weight(model, writer.parameter)
    linear, clean = Eraser(left, right), output_of(model, example)
    before = _norm_inputs(model, stream.norms, example)
    acts = {writer.module: eraser if writer == offset else linear for writer in writers}
    with tap(model, acts, lambda name, output: acts[name](output)):
        wanted = output_of(model, example)
    edits = Edits()
    with undone_on_error(model, edits):
        _untie(model, edits, stream.heads(writers))
        for writer in writers:
            _fold(model, edits, acts[writer.module], writer)
        dtypes = {model.get_parameter(writer.parameter).dtype for writer in writers}
        difference = check_agrees(dtypes, clean, wanted, output_of(model, example))
        leak = _check_erased(eraser, dtypes, before, _norm_inputs(model, stream.norms, example))
    forget_compiled()
    FOLDED[model] = edits if keep_originals else None
    return FoldReport(
        readers={STREAM: tuple(dict.fromkeys(writer.module for writer in writers))},
        cost_ratio={STREAM: 1.0},
        leak=leak,
        difference=difference,
        bytes_kept=edits.bytes_kept if keep_originals else 0,
    )


def _fold(model: nn.Module, edits: Edits, eraser: Eraser, writer: Writer) -> None:
    """Apply the eraser to all that the weight can write."""
    weight = model.get_parameter(writer.parameter).detach().double()
    rows = weight if writer.axis == -1 else weight.mT
    rows = eraser.to(weight.device, torch.float64)(rows)
    edits.write(model, writer.parameter, (rows if writer.axis == -1 else rows.mT).to(torch.float64))
    bias = None if writer.is_table else getattr(model.get_submodule(writer.module), "bias", None)
    if bias is not None:
        edits.write(model, f"{writer.module}.bias", eraser.to(bias.device, torch.float64)(bias.detach().double()))


def _excess(left: Tensor, right: Tensor) -> float:
    """How far R L is from the identity."""
    product = right @ left
    return float((product - torch.eye(len(product)).to(product)).norm())


def _untie(model: nn.Module, edits: Edits, heads: Iterable[tuple[str, str]]) -> None:
    for name, table in heads:
        edits.untie(model, name, table)
        config = getattr(model, "config", None)
        for owner in (config, config.get_text_config()) if config is not None else ():
            if getattr(owner, "tie_word_embeddings", False):
                edits.set_flag(owner, "tie_word_embeddings", False)


def _norm_inputs(model: nn.Module, norms: Iterable[str], example: Any) -> dict[str, Tensor]:
    """The rows that each norm reads."""
    rows: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args, kwargs: rows.update({name: tensors_in((args, kwargs))[0].detach().double()})

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True) for name in norms]
    try:
        output_of(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def _check_erased(
    eraser: Eraser, dtypes: Iterable[torch.dtype], before: dict[str, Tensor], after: dict[str, Tensor]
) -> float:
    """Return the largest share of what the eraser reads that is left; RuntimeError beyond what rounding explains."""
    digits = max(math.sqrt(torch.finfo(dtype).eps) for dtype in dtypes)
    shares = []
    for name, rows in before.items():
        right = eraser.right.to(rows)
        mean = torch.zeros(eraser.dim).to(rows) if eraser.mean is None else eraser.mean.to(rows)
        was, now = (rows - mean) @ right.mT, (after[name] - mean) @ right.mT
        rounding = (rows.abs() + mean.abs()) @ right.abs().mT
        shares.append(share(now, was))
        if not float(now.norm()) <= digits * float(rounding.norm()):
            raise RuntimeError(
                f"{name!r} would still read {shares[-1]:.1e} of what the eraser removes: something writes to the "
                "residual stream unseen; nothing was changed"
            )
    return max(shares)


class _Stream(TorchDispatchMode):
    """Follows sums of embeddings and of outputs of linear layers, by the memory that they lie in, to the norms."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.width = model, width
        self.names = dict(model.named_parameters(remove_duplicate=False))
        self.parameters = {memory_of(parameter): name for name, parameter in model.named_parameters()}
        self.terms: dict[int, frozenset[Writer]] = {}
        self.kept: list[Tensor] = []  # alive, lest their memory be given to others
        self.elsewhere: dict[Writer, str] = {}  # terms that are read before they reach the stream
        self.multiplied: dict[str, set[str]] = {}  # weight -> modules in which rows are multiplied with it
        self.norms: dict[str, frozenset[Writer]] = {}
        self.stack = [""]

    def run(self, example: Any) -> None:
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
        name = func.overloadpacket.__name__
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(output)
        terms = [t for t in inputs if memory_of(t) in self.terms]
        new = self._written(name, args)
        if new is not None:
            self._mark(terms, name)
            if outputs[0].shape[-1] == self.width:
                self._keep(outputs[0], frozenset([new]))
            return output
        if not terms or name in NO_VALUES:
            return output
        if (
            outputs
            and not func._schema.is_mutable
            and {memory_of(t) for t in outputs} <= {memory_of(t) for t in inputs}
        ):
            return output  # a view
        if name in COPIES and not mixes(name, args) and len(terms) == 1 and whole_rows(outputs[0], -1, self.width):
            self._keep(outputs[0], self._terms(terms[0]))
        elif name in ("add", "add_") and len(terms) == len(args) == 2 and not kwargs:
            self._keep(outputs[0], self._terms(terms[0]) | self._terms(terms[1]))
        elif name in ("mul", "div") and self._is_pure(terms[0]) and tensors_in(args[1:]) == []:
            self._keep(outputs[0], self._terms(terms[0]))  # a number: P commutes with it
        else:
            self._mark(terms, name)
        return output

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
