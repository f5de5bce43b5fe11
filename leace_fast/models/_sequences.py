"""A trace of the first sequences of a batch in the place of the whole, where the model does not tell the two apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._modules import with_hooks

Example = Mapping[str, Any] | Tensor
Found = TypeVar("Found")
PLAIN = (bool, int, float, str, type(None))
SEQUENCES = 2  # one alone may be squeezed, have no batch statistics, or hide that a module runs once a sequence


def traced_on_few(model: nn.Module, example: Example, trace: Callable[[Example], Found]) -> Found:
    """Return what `trace(example)` returns, from the first sequences of the example if these show as much.

    They do if the trace of them succeeds and all modules that hold weights ran, so that a module that depends on the
    tokens, as an expert does, was not missed. Otherwise the whole example is traced.

    Args:
        model: that the trace runs.
        example: a batch, as in `find_sites`.
        trace: a function of an example.

    >>> import torch
    >>> model = nn.Linear(2, 2)
    >>> traced_on_few(model, torch.ones(8, 5, 2), lambda example: model(example).shape)
    torch.Size([2, 5, 2])
    """
    few = None if _is_compiled(model) else first_sequences(example, getattr(model, "main_input_name", None))
    if few is not None:
        # Whatever a model refuses of fewer sequences, it may take of all: what is wrong with both is raised below.
        with suppress(Exception), _idle(model) as idle:
            found = trace(few)
            if not idle:
                return found
    return trace(example)


def first_sequences(example: Example, main: str | None = None) -> Example | None:
    """Return the first sequences of a batch; None where there are no more, or that cannot be told.

    The batch is as large as the leading axis of the main input, or of the first tensor. Tensors of another leading axis
    are kept whole: biases by position are such. Whatever holds tensors inside, as a cache does, cannot be cut.

    Args:
        example: a batch.
        main: name of the input that says how large it is.

    >>> import torch
    >>> batch = {"input_ids": torch.ones(8, 5), "bias": torch.ones(1, 5, 5), "use_cache": False}
    >>> {name: getattr(value, "shape", value) for name, value in first_sequences(batch).items()}
    {'input_ids': torch.Size([2, 5]), 'bias': torch.Size([1, 5, 5]), 'use_cache': False}
    """
    leading = leading_of(example, main)
    return None if leading is None or len(leading) <= SEQUENCES else picked(example, range(SEQUENCES), main)


def leading_of(example: Example, main: str | None = None) -> Tensor | None:
    """Return the input that says how large a batch is; None of a batch that cannot be cut."""
    if isinstance(example, Tensor):
        return example if example.ndim > 1 else None
    if not isinstance(example, Mapping) or not all(isinstance(part, (Tensor, *PLAIN)) for part in example.values()):
        return None
    tensors = {name: part for name, part in example.items() if isinstance(part, Tensor) and part.ndim > 1}
    return tensors[main] if main in tensors else next(iter(tensors.values()), None)


def picked(example: Example, places: Sequence[int], main: str | None = None, axis: int = 0) -> Example:
    """Return a batch of the sequences at some places, or of other slices of what is as long as the main input."""
    leading = leading_of(example, main)
    assert leading is not None, "it can be cut"

    def pick(part: Tensor) -> Tensor:
        return part.index_select(axis, torch.tensor(places, device=part.device))

    return _along(example, axis, leading.shape[axis], pick)


def shortened(example: Example, main: Tensor, axis: int) -> Example | None:
    """Return a batch whose main input, and what is as long as it in that axis, is half as long; None of one place."""
    size = main.shape[axis]
    return None if size < 2 else _along(example, axis, size, lambda part: part.narrow(axis, 0, size - size // 2))


def _along(example: Example, axis: int, size: int, change: Callable[[Tensor], Tensor]) -> Example:
    """Return a batch in which what has this size in an axis is changed."""

    def changed(part: Any) -> Any:
        fits = isinstance(part, Tensor) and part.ndim > axis and part.shape[axis] == size
        return change(part) if fits else part

    return changed(example) if isinstance(example, Tensor) else {name: changed(part) for name, part in example.items()}


@contextmanager
def _idle(model: nn.Module) -> Iterator[set[nn.Module]]:
    """The modules that hold weights and have a forward pass, without those that ran inside the block."""
    idle = {module for module in model.modules() if _runs(module)}
    with with_hooks([(module, lambda module, args, output: idle.discard(module)) for module in idle]):
        yield idle


def _runs(module: nn.Module) -> bool:
    """Whether a module holds weights, itself or inside, and is no mere list of modules."""
    return type(module).forward is not nn.Module.forward and next(module.parameters(), None) is not None


def _is_compiled(model: nn.Module) -> bool:
    """Whether a part of a model is compiled, which another batch size would compile anew."""
    return any(
        getattr(module, "_compiled_call_impl", None) or hasattr(module, "_orig_mod") for module in model.modules()
    )
