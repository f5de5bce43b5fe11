"""What cannot be folded is named, and nothing has changed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from folded_models import (
    assert_same_state,
    erasers_of,
    state_of,
)
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber, export_lora, fold_, fold_residual_

UP = "model.layers.1.post_attention_layernorm"  # of the Llama


@pytest.mark.parametrize(
    ("name", "site", "reader"),
    [
        ("bert", "bert.encoder.layer.0.attention.output.LayerNorm", "'bert.encoder.layer.0.output' by add;"),
        ("t5", "encoder.final_layer_norm", "the output of the model;"),
        ("llama", "model.layers.0.mlp", "'model.layers.0' by add;"),
        ("llama", "model.layers.0.self_attn.q_proj", "'model.layers.0.self_attn' by mul, "),
        ("gpt2", "transformer.ln_f", "'lm_head', whose weight also serves 'transformer.wte' by embedding;"),
        ("vit", "layernorm", "the output of the model;"),
    ],
)
def test_readers_that_take_no_eraser_are_named(name: str, site: str, reader: str) -> None:
    model, batch = tiny_models.build(name), tiny_models.batch(name)
    before = state_of(model)
    eraser = Eraser(torch.eye(16)[:, :1], torch.eye(16)[:1])
    with pytest.raises(ValueError) as error:
        fold_(model, {site: eraser}, batch)
    message = str(error.value)
    assert message.startswith(f"{site!r} cannot be folded") and reader.rstrip(";, ") in message
    assert_same_state(model, before)


class Quantised(nn.Module):
    """Eight bits and a scale, as quantised layers keep them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.scale = nn.Parameter(linear.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def replace_reader(model: Any) -> None:
    model.model.layers[1].mlp.up_proj = Quantised(model.model.layers[1].mlp.up_proj)


def share_reader(model: Any) -> None:
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj


def share_weight(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight


def hook_reader(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def hook_site(model: Any) -> None:
    model.get_submodule(UP).register_forward_hook(lambda module, args, output: output + 1)


def swap_columns(model: Any) -> None:
    reader = model.model.layers[1].mlp.up_proj
    reader.register_forward_pre_hook(lambda module, args: (args[0][..., torch.arange(15, -1, -1)],))


def parametrise(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[1].mlp.up_proj)


@pytest.mark.parametrize(
    ("change", "reader"),
    [
        (replace_reader, "'model.layers.1.mlp.up_proj' by mm"),
        (
            share_reader,
            "'model.layers.0.mlp.up_proj', whose weight also serves 'model.layers.0.mlp.up_proj' by mm",
        ),
        (share_weight, "'model.layers.1.mlp.up_proj', whose weight also serves"),
        (hook_reader, "'model.layers.1.mlp.up_proj' by add"),
        (hook_site, f"'{UP}' by add"),
        (swap_columns, "'model.layers.1.mlp.up_proj' by index"),
        (parametrise, "'model.layers.1.mlp.up_proj' by mm"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_quantised_shared_and_hooked_layers_are_named(change: Any, reader: str) -> None:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    change(model)
    before = state_of(model)
    with pytest.raises(ValueError, match=f"'{UP}' cannot be folded.*") as error:
        fold_(model, {UP: erasers_of("llama")[UP]}, batch)
    assert reader in str(error.value)
    assert_same_state(model, before)


def test_what_is_no_model() -> None:
    model: Any = "model"
    for act in (lambda: fold_(model, {}), lambda: fold_residual_(model, Eraser(torch.eye(2), torch.eye(2)))):
        with pytest.raises(TypeError, match="model is a str, expected a module: load it first"):
            act()


def test_a_weight_of_the_model_itself_takes_the_linear_map() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.weight = nn.LayerNorm(4), nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.norm(x), self.weight)

    model, mean = Model().double(), torch.ones(4).double()
    eraser = Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1], mean, mean_solve=mean)
    report = fold_(model, {"norm": eraser}, torch.randn(2, 4).double(), max_cost_ratio=99)
    assert report.readers == {"norm": ("",)} and report.cost_ratio["norm"] == eraser.linear_cost_ratio


def test_other_refusals() -> None:
    model, batch, erasers = tiny_models.build("llama"), tiny_models.batch("llama"), erasers_of("llama")
    custom = Eraser(erasers[UP].left, erasers[UP].right, erasers[UP].mean)
    with pytest.raises(ValueError, match=rf"'{UP}' is read by 'model.layers.1.mlp.gate_proj', .* keeps no mean_solve"):
        fold_(model, {UP: custom}, batch)
    far = Eraser(custom.left, custom.right, custom.left[:, 0] * 9, mean_solve=custom.right[0] * 9)
    with pytest.raises(ValueError, match=r"times as much as the affine one, at most 1\.1 is allowed"):
        fold_(model, {UP: far}, batch)
    with pytest.raises(ValueError, match="reads 'model.layers.1.post_attention_layernorm' at width 16, .* has 8"):
        fold_(model, {UP: Eraser(torch.eye(8)[:, :1], torch.eye(8)[:1])}, batch)
    with pytest.raises(ValueError, match="no site 'model.layer.0'"):
        fold_(model, {"model.layer.0": custom}, batch)
    with pytest.raises(ValueError, match="nothing to fold"):
        fold_(model, {}, batch)
    with Scrubber(erasers).attached(model), pytest.raises(ValueError, match="attached to this model.*detach_"):
        fold_(model, erasers, batch)
    model.model.layers[1].mlp.up_proj.to("meta")
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        fold_(model, erasers, batch)


def test_autocast_inference_tensors_and_packed_weights_are_refused() -> None:
    model, batch, erasers = tiny_models.build("llama", torch.float32), tiny_models.batch("llama"), erasers_of("llama")
    before = state_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="outside of it"):
        fold_(model, erasers, batch)
    assert_same_state(model, before)
    with torch.inference_mode():
        frozen = tiny_models.build("llama")
    with pytest.raises(ValueError, match="made in inference mode"):
        fold_(frozen, erasers, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it moved to another library
        packed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match="'model.layers.0.self_attn.q_proj' by linear_dynamic"):
        fold_(packed, erasers, batch)


def test_no_adapter_is_made_of_a_folded_model(tmp_path: Path) -> None:
    """It would name the clean model as its base, on which it erases nothing."""
    model, batch, erasers = tiny_models.build("llama"), tiny_models.batch("llama"), erasers_of("llama")
    fold_(model, erasers, batch, max_cost_ratio=99)
    with pytest.raises(ValueError, match="this model is folded already: unfold_ it first"):
        export_lora(model, erasers, tmp_path / "adapter", batch, max_cost_ratio=99)
    assert not (tmp_path / "adapter").exists()
