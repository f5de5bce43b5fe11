"""Whether a changed model does on an example what the hooked model does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .._warnings import warn
from ..erasers import Eraser
from ..models import device_of, inputs_of, run_example, tap
from ._plan import Plan

# Of the erasers' effect on the output; the clean model is at 1. On the demo's model bfloat16 rounding is at 0.023, and
# a lost offset that makes the change of x 5 % dearer at 0.10. What is orthogonal to the effect adds its square to that
# of the effect: neither moves a figure of the attached model much. From a fifth on, it can be another model's figure.
FAR_FROM_ATTACHED = 0.2


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


def attached_distance(clean: Tensor, attached: Tensor, got: Tensor) -> float:
    """Return how far an output is from that of the attached erasers, over what these change: 1 for the clean model."""
    attached = attached.double()
    return share(got.double() - attached, attached - clean.double())


def warn_if_far(distance: float, plans: Sequence[Plan], option: str) -> None:
    """Warn where a model is far from the attached one, with the reason and what to do.

    Args:
        distance: as `attached_distance` gives it.
        plans: that were carried out.
        option: the argument that gives readers a bias.
    """
    if distance <= FAR_FROM_ATTACHED:
        return
    lost = [plan for plan in plans if plan.lost_offset]
    reason, remedy = "the weights are rounded: take them in a wider dtype", ""
    if lost:
        reason = f"{len(lost)} of {len(plans)} sites lost their offset (the first is {lost[0].site!r})"
        remedy = f": {option}=True keeps it" if any(plan.lost_offset == "bias" for plan in lost) else ""
    warn(
        f"on the example the output is {percent(distance)} of the erasers' effect from the attached model's, as "
        f"{reason}{remedy}, or attach the erasers"
    )


def told(distance: float, lost_offset: Sequence[str]) -> str:
    """Return how far a model is from the attached one, in words for a report."""
    count = len(lost_offset)
    offsets = f"{count} {'site' if count == 1 else 'sites'} lost the offset" if count else "every offset is kept"
    return f"{percent(distance)} of the erasers' effect from the attached model's ({offsets})"


def percent(part: float) -> str:
    """Return a share in words, with two digits or all that stand before the point.

    >>> percent(0.3512), percent(1.2e-7), percent(1.234)
    ('35 %', '1.2e-05 %', '123 %')
    """
    return f"{100 * part:.0f} %" if part >= 0.1 else f"{100 * part:.2g} %"


def share(part: Tensor, whole: Tensor) -> float:
    """The norm of one matrix over that of another, 0 if that is nothing."""
    return float(part.norm() / norm) if (norm := float(whole.norm())) else 0.0
