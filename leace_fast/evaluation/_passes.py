"""Forward passes of an evaluation, in which the logits of few tokens are held at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models import Inside, describe, device_of, inputs_of, submodules, without_labels
from ..scrubbing import Scrubber, without_cache
from ._gathering import erased
from ._losses import batch_losses, logits_of
from ._probing import Probing

BUDGET = 2**28  # bytes of logits, in float32, of the clean and of the erased model together
TRIED = 32  # tokens of a sequence on which the head is tried
CLOSE = 1e-3  # of the largest logit: the same product may round otherwise


class Passes:
    """The passes of one evaluation.

    Args:
        inside: any module.
        scrubber: whose erasers act; None for none.
        probing: what gathers rows on the way; None for nothing.
    """

    def __init__(self, inside: Inside, scrubber: Scrubber | None, probing: Probing | None) -> None:
        self.inside, self.model, self.scrubber, self.probing = inside, inside.model, scrubber, probing
        self.width = _vocabulary(inside.model)
        self._head: Head | None = None
        self._tried = False

    def run(self, batch: Mapping[str, Any], index: int, stream: int, score: bool = True) -> Tensor:
        """Run a batch, erased and clean, and return its losses as `summed_losses` does.

        Args:
            batch: inputs by name.
            index: its number.
            stream: TRAIN or TEST.
            score: whether its losses are wanted; all 0 else.
        """
        if not isinstance(batch, Mapping):
            raise TypeError(f"batch {index} is {describe(batch)}, expected the model's inputs by name")
        sums = torch.zeros(3, dtype=torch.float64)
        if self.probing:
            self.probing.admit(batch, index, stream, _example(batch) if self._too_large(batch) else batch)
        pieces, head = [batch], None
        if self._too_large(batch):
            head = self._head_for(batch)
            pieces = [batch] if head else list(_pieces(batch, self._most(batch)))
        for piece in pieces:
            gathering = self.probing.gathering(piece, index, stream) if self.probing else []
            values = self._values(piece, head, erased(self.inside.whole, self.scrubber), *gathering)
            if score:
                clean = self._values(piece, head) if self.scrubber is not None else None
                sums += batch_losses(self.model, piece, values, clean, head)
                del clean
            del values
        return sums

    def _values(
        self, batch: Mapping[str, Any], head: Head | None, *contexts: AbstractContextManager[Any]
    ) -> Tensor | None:
        """The logits of a pass, or the hidden states that the head makes them of; None where there are none."""
        inputs = without_cache(self.model, inputs_of(batch, device_of(self.model)))
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            if head:
                return head.hidden(self.model, inputs)
            logits = logits_of(self.model(**inputs))
        if logits is None:
            return None
        self.width = logits.shape[-1]
        return logits

    def _most(self, batch: Mapping[str, Any]) -> int:
        """How many sequences of a batch have logits within the budget, clean and erased."""
        length = _tokens(batch) // max(_size(batch), 1)
        return max(1, BUDGET // (2 * 4 * self.width * max(length, 1)))

    def _too_large(self, batch: Mapping[str, Any]) -> bool:
        return 2 * 4 * self.width * _tokens(batch) > BUDGET

    def _head_for(self, batch: Mapping[str, Any]) -> Head | None:
        """The head, if it may be left out of the passes: found and tried once."""
        if not self._tried:
            self._tried = True
            names = [*map(self.inside.name, self.scrubber or ()), *(self.probing.names if self.probing else ())]
            self._head = find_head(self.model, _example(batch), names)
        return self._head


class Head:
    """The module that makes a model's logits of its last hidden states, and does so for some of them alone.

    >>> head = Head(nn.Linear(4, 9))
    >>> head(torch.zeros(3, 4)).shape
    torch.Size([3, 9])
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, rows: Tensor) -> Tensor:
        return self.module(rows)

    def hidden(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """What the head is given in a pass, in which it makes the logits of each first token alone."""
        given: list[Tensor] = []

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            given.append(args[0])
            return args[0][:, :1], *args[1:]

        with _hooked(self.module, before):
            # of these logits no loss can be made
            model(**{name: value for name, value in inputs.items() if name != "labels"})
        (hidden,) = given
        return hidden


def find_head(model: Any, batch: Mapping[str, Any], names: list[str]) -> Head | None:
    """The head of a model, None unless a pass on a batch shows that its logits are what the head makes, no more.

    Args:
        model: any module, clean.
        batch: some tokens.
        names: of modules in which something acts: none may hold the head, or be in it.
    """
    module = _output_embeddings(model)
    compiled = any(getattr(each, "_compiled_call_impl", None) for each in model.modules())
    config = getattr(model, "config", None)
    if module is None or compiled or hasattr(model, "_orig_mod") or getattr(config, "is_encoder_decoder", False):
        return None
    if any(
        module in set(site.modules()) or site in set(module.modules()) for site in submodules(model, names).values()
    ):
        return None
    inputs = without_cache(model, inputs_of(batch, device_of(model)))
    head = Head(module)
    try:
        wanted = logits_of(model(**inputs))
        if wanted is None:
            return None
        logits = head(head.hidden(model, inputs))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return None  # it is called otherwise, or more than once
    if logits.shape != wanted.shape or not bool((logits - wanted).abs().max() <= CLOSE * wanted.abs().max()):
        return None
    return head


@contextmanager
def _hooked(module: nn.Module, before: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def _output_embeddings(model: Any) -> nn.Module | None:
    try:
        module = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return module if isinstance(module, nn.Module) else None


def _vocabulary(model: Any) -> int:
    """The width of a model's logits, 0 where it is not known yet."""
    weight = getattr(_output_embeddings(model), "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else 0


def _tokens(batch: Mapping[str, Any]) -> int:
    ids = batch.get("input_ids", batch.get("labels"))
    return ids.numel() if isinstance(ids, Tensor) else 0


def _size(batch: Mapping[str, Any]) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim), 0)


def _pieces(batch: Mapping[str, Any], most: int) -> Iterator[Mapping[str, Any]]:
    """A batch as several of at most so many sequences; whole where not all that it holds is by sequence."""
    size = _size(batch)

    def part(value: Any, first: int) -> Any:
        if isinstance(value, Mapping):
            return {name: part(each, first) for name, each in value.items()}
        return value[first : first + most] if isinstance(value, Tensor) else value

    def divides(value: Any) -> bool:
        if isinstance(value, Mapping):
            return all(map(divides, value.values()))
        return isinstance(value, (str, int, float, type(None))) or (
            isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
        )

    if size <= most or not divides(batch):
        yield batch
        return
    for first in range(0, size, most):
        yield part(batch, first)


def _example(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Two sequences of a batch, of which the first tokens where everything is by token, and nothing that is scored."""
    batch = next(_pieces(without_labels(batch), 2))
    ids, kept = batch.get("input_ids"), {name: value for name, value in batch.items() if name != "labels"}
    if not isinstance(ids, Tensor) or any(isinstance(v, Tensor) and v.shape != ids.shape for v in kept.values()):
        return batch
    return {name: value[:, :TRIED] if isinstance(value, Tensor) else value for name, value in kept.items()}
