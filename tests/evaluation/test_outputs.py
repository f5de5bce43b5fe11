"""Losses are measured whatever form a model's output has, and folded sites are not probed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from labelled_models import labelled_batches
from torch import Tensor, nn

from leace_fast import Scrubber, evaluate, scrub, unfold_

FORMS: dict[str, Any] = {
    "a dict": lambda logits: {"logits": logits},
    "an object": lambda logits: SimpleNamespace(logits=logits),
    "a tuple": lambda logits: (logits,),
    "a tuple behind a loss": lambda logits: (logits.sum(), logits),
}


class Speaks(nn.Module):
    """A causal model in a module that returns its logits in a form of its own."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.model, self.form = tiny_models.build("llama"), form
        self.config = self.model.config

    def can_generate(self) -> bool:
        return True

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return FORMS[self.form](self.model(input_ids=input_ids, attention_mask=attention_mask).logits)


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_output_does_not_matter(form: str) -> None:
    batches = labelled_batches("llama", 2)
    wanted, found = evaluate(tiny_models.build("llama"), batches), evaluate(Speaks(form), batches)
    assert wanted.nats is not None and found.nats == wanted.nats and found.tokens == wanted.tokens


def test_folded_sites_are_not_probed() -> None:
    model, batches = tiny_models.build("llama"), labelled_batches("llama", 4)
    held_out = [{**b, "input_ids": (b["input_ids"] + 5).clamp(max=63)} for b in batches]
    scrubber: Scrubber = scrub(model, batches)
    scrubber.fold_(model, batches[0], max_cost_ratio=99)
    for sites in (None, "model.layers.0.input_layernorm"):
        with pytest.raises(
            ValueError, match="'model.layers.0.input_layernorm' is folded into the weights that read it"
        ):
            evaluate(model, held_out, sites=sites)
    assert evaluate(model, held_out, probe=False).nats is not None
    assert list(evaluate(model, held_out, sites="model.norm").probes) == ["model.norm"]
    unfold_(model)
    assert len(evaluate(model, held_out).probes) == 4
    assert torch.is_tensor(model.lm_head.weight)
