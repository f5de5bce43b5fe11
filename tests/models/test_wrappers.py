"""The model inside wrappers, and the names that it has for its modules."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
from labelled_models import labelled_batches
from tiny_models import Block
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel
from wrapped import WRAPPERS

from leace_fast import evaluate, export_lora, fold_, scrub, unfold_
from leace_fast.models import inner_name, unwrapped


@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), checkpoint_wrapper], ids=[*WRAPPERS, "checkpointed"])
def test_the_model_inside_and_its_names(wrap):
    model = Block()
    wrapped = wrap(model)
    assert wrapped is not model and unwrapped(wrapped) is model and unwrapped(model) is model
    names = {inner_name(each): module for each, module in wrapped.named_modules(remove_duplicate=False)}
    assert names == {"": model, "norm": model.norm, "linear": model.linear} | {"": names[""]}


def test_models_with_adapters():
    peft = pytest.importorskip("peft")
    model = tiny_models.build("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert unwrapped(nn.DataParallel(wrapped)) is model
    for name, module in model.named_modules():
        assert inner_name(f"module.base_model.model.{name}") == name
        assert wrapped.get_submodule(f"base_model.model.{name}" if name else "base_model.model") is module


def test_averaged_weights():
    averaged = AveragedModel(Block())
    assert unwrapped(averaged) is averaged.module


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, WRAPPERS["compiled"]], ids=["checkpoint", "compiled"])
def test_wrapped_layers_have_the_names_of_the_layers(wrap, tmp_path):
    batches = labelled_batches("llama")
    scrubber = scrub(tiny_models.build("llama"), batches)
    model: Any = tiny_models.build("llama")
    plain = evaluate(model, batches, scrubber, in_sample=True)
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = wrap(layer)
    assert evaluate(model, batches, scrubber, in_sample=True).nats == plain.nats
    export_lora(model, scrubber, tmp_path / "wrapped", batches[0])
    export_lora(tiny_models.build("llama"), scrubber, tmp_path / "plain", batches[0])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "wrapped" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    fold_(model, scrubber, batches[0])
    unfold_(model)


@pytest.mark.parametrize("name", ["layers.module.0", "modules.0", "my_module", "base_model.layer", ""])
def test_names_that_no_wrapper_gave_stay(name):
    assert inner_name(name) == name
