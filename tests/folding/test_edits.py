"""Changes to a model that can be undone."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch import nn

from leace_fast.folding._edits import Edits, add_biases, check_weight


def test_everything_is_undone_in_any_mix() -> None:
    model: Any = tiny_models.build("gpt2")
    head, config = model.lm_head.weight, model.config.to_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edits = Edits()
    edits.untie(model, "lm_head.weight", "transformer.wte.weight")
    edits.write(model, "lm_head.weight", torch.zeros(64, 16))
    edits.write(model, "transformer.wte.weight", torch.ones(64, 16))
    edits.write(model, "transformer.wte.weight", torch.full((64, 16), 2.0))  # the first original counts
    edits.add_bias(model, "lm_head.bias", [64])
    edits.write(model, "lm_head.bias", torch.ones(64))
    edits.set_flag(model.config, "tie_word_embeddings", False)
    assert float(model.lm_head.weight.sum()) == 0 and bool((model.transformer.wte.weight == 2).all())
    assert bool((model.lm_head.bias == 1).all()) and model.lm_head.bias.dtype == torch.float64
    edits.check_unchanged(model)
    edits.undo(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert model.lm_head.weight is head is model.transformer.wte.weight and model.lm_head.bias is None
    assert model.config.to_dict() == config


@pytest.mark.parametrize("change", ["train", "cast", "replace", "drop"])
def test_later_changes_are_noticed(change: str) -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2))
    edits = Edits()
    edits.write(model, "0.weight", torch.zeros(2, 2))
    edits.check_unchanged(model)
    if change == "train":
        model[0].weight.grad = torch.ones(2, 2)
        torch.optim.SGD(model.parameters(), lr=1).step()
    elif change == "cast":
        model.double()
    elif change == "replace":
        model.load_state_dict({"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(2)})
    else:
        model[0] = nn.Identity()
    with pytest.raises(ValueError, match=r"'0.weight' was changed after it was folded"):
        edits.check_unchanged(model)


def test_biases_without_a_config() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Conv1d(2, 3, 1, bias=False))
    edits = Edits()
    add_biases(model, edits, ["0.bias"])
    assert model[0].bias.tolist() == [0, 0, 0] and model[0].bias.requires_grad
    with pytest.raises(ValueError, match="'1.bias' cannot be added: Conv1d"):
        add_biases(model, edits, ["1.bias"])
    edits.undo(model)
    assert model[0].bias is None


def test_weights_that_cannot_be_written() -> None:
    assert check_weight(nn.Linear(2, 2), "weight").shape == (2, 2)
    whole = nn.Module()
    whole.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'weight' is a Tensor of torch.int8, expected a plain floating tensor"):
        check_weight(whole, "weight")
    with pytest.raises(ValueError, match="on the meta device"):
        check_weight(nn.Linear(2, 2, device="meta"), "weight")
    with torch.inference_mode():
        frozen = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="inference mode"):
        check_weight(frozen, "weight")
