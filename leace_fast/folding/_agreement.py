"""Whether a changed model does on an example what the hooked model does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..erasers import Eraser
from ..models import device_of, inputs_of, run_example, tap


def example_of(model: nn.Module) -> dict[str, Any]:
    """The `dummy_inputs` that models of transformers bring, on their device."""
    inputs = getattr(model, "dummy_inputs", None)
    if not inputs or getattr(model, "main_input_name", "input_ids") not in inputs:
        raise ValueError("an example is needed: pass example=, a batch of the model's inputs")
    return inputs_of(inputs, device_of(model))


def output_of(model: nn.Module, example: Mapping[str, Any] | Tensor) -> Tensor:
    """The logits, or else the first float tensor, that the model gives for an example."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # some models draw at random in evaluation mode too
        output = run_example(model, example)
    logits = getattr(output, "logits", None)
    tensors = [logits, *tree_leaves(output)]
    found = next((t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()), None)
    if found is None:
        raise ValueError("the model gives no float tensor for the example: folding cannot be checked")
    return found.detach()


def hooked_output(model: nn.Module, erasers: Mapping[str, Eraser], example: Mapping[str, Any] | Tensor) -> Tensor:
    """The output with erasers at their sites."""
    with tap(model, erasers, lambda name, output: erasers[name](output)):
        return output_of(model, example)


def check_agrees(dtypes: Iterable[torch.dtype], clean: Tensor, wanted: Tensor, got: Tensor) -> float:
    """Return how far an output is from the hooked one, relative; RuntimeError beyond what rounding explains.

    Half the digits of the weights: rounding grows through the layers, and a reader that was missed changes the
    first digits. It is the second guard; the first is that every operation on a site's output was seen.
    """
    clean, wanted = clean.double(), wanted.double()
    # models that erasing moves far are as sensitive to rounding
    tolerance = max(math.sqrt(torch.finfo(dtype).eps) for dtype in dtypes) * max(1, 4 * share(wanted - clean, wanted))
    difference = share(got.double() - wanted, wanted)
    if not difference <= tolerance or not bool(wanted.isfinite().all()):
        raise RuntimeError(
            f"with the erasers in its weights the model's output on the example is {difference:.1e} away from the "
            f"hooked model's, expected {tolerance:.1e} at most (some code reads a site or a weight unseen, or numbers "
            "are out of range); nothing was changed"
        )
    return difference


def share(part: Tensor, whole: Tensor) -> float:
    """The norm of one matrix over that of another, 0 if that is nothing."""
    return float(part.norm() / norm) if (norm := float(whole.norm())) else 0.0
