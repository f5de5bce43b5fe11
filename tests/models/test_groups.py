"""Places that are asked for by what they are."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch import nn

from leace_fast.models import PLACES, find_sites, submodules
from leace_fast.models._groups import find_places

# of each layer: what it is called, and what attention and MLP end in
EXPECTED = {
    "llama": ("model.layers.{}", "self_attn.o_proj", "mlp"),
    "phi": ("model.layers.{}", "self_attn.dense", "mlp"),
    "gpt_neox": ("gpt_neox.layers.{}", "attention.dense", "mlp"),
    "gpt2": ("transformer.h.{}", "attn.c_proj", "mlp"),
    "opt": ("model.decoder.layers.{}", "self_attn.out_proj", "fc2"),
    "falcon": ("transformer.h.{}", "self_attention.dense", "mlp"),
    "mixtral": ("model.layers.{}", "self_attn.o_proj", "mlp"),
    "bert": ("bert.encoder.layer.{}", "attention.output.dense", "output.dense"),
    "vit": ("layers.{}", "attention.o_proj", "mlp"),
}


def silenced(module: Any, args: Any, output: Any) -> Any:
    return output * 0


@pytest.mark.parametrize("name", EXPECTED)
def test_places_of_known_layers(name):
    model, batch = tiny_models.build(name), tiny_models.batch(name)
    layer, attention, mlp = EXPECTED[name]
    wanted = {"residual": "", "attention_out": f".{attention}", "mlp_out": f".{mlp}"}
    for group in PLACES:
        found = find_places(model, group, lambda: model(**batch))
        assert found == [layer.format(i) + wanted[group] for i in range(2)]


def test_an_encoder_decoder_has_two_stacks_and_two_attentions():
    model, batch = tiny_models.build("t5"), tiny_models.batch("t5")
    layers = ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    assert find_places(model, "residual", lambda: model(**batch)) == layers
    found = find_places(model, "attention_out", lambda: model(**batch))
    assert len(found) == 6 and sum("EncDec" in name for name in found) == 2


@pytest.mark.parametrize("name", ["llama", "bert", "gpt_neox"])
def test_what_attention_and_mlp_add_is_the_change_of_the_stream(name):
    """With both erased to nothing, a layer hands on its input; BERT's norm acts on it all the same."""
    model, batch = tiny_models.build(name), tiny_models.batch(name)
    places = [find_places(model, group, lambda: model(**batch))[0] for group in ("attention_out", "mlp_out")]
    (layer,) = find_places(model, "residual", lambda: model(**batch))[:1]
    seen = {}
    hooks = [m.register_forward_hook(silenced) for m in submodules(model, places).values()]
    hooks.append(submodules(model, [layer])[layer].register_forward_hook(lambda m, a, y: seen.update(x=a[0], y=y)))
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    x, y = seen["x"], seen["y"]
    if name == "bert":
        x = model.bert.encoder.layer[0].output.LayerNorm(model.bert.encoder.layer[0].attention.output.LayerNorm(x))
    assert torch.allclose(x, y)


class Mixture(nn.Module):
    """An MLP that returns its routing beside what it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.shared, self.experts = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.router(x).softmax(-1)
        experts = self.experts(x).reshape(*x.shape[:-1], 2, 4)
        return (experts * scores[..., None]).sum(-2) + self.shared(x), scores


class Mixed(nn.Module):
    """A layer whose attention is known by its name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear_attn, self.mlp = nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4)), Mixture()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.linear_attn(self.norm(x))
        return x + self.mlp(x)[0]


def test_mixed_experts_with_their_scores_and_attention_by_name():
    model = nn.ModuleList([Mixed(), Mixed()])
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    x = torch.randn(2, 3, 4)
    assert find_places(model, "mlp_out", lambda: model(x)) == ["0.mlp", "1.mlp"]
    assert find_places(model, "attention_out", lambda: model(x)) == ["0.linear_attn.0", "1.linear_attn.0"]
    assert [site.width for site in find_sites(model, x, "mlp_out")] == [4, 4]


def test_convolutions_in_front_are_no_layers():
    front = nn.ModuleList(nn.Sequential(nn.Conv1d(4, 4, 2, stride=2), nn.GELU()) for _ in range(2))
    model = nn.ModuleDict({"front": front, "layers": nn.ModuleList([Mixed(), Mixed()])})

    def run():
        x = torch.randn(2, 4, 16)
        for block in front:
            x = block(x)
        x = x.mT.contiguous()
        for layer in model["layers"]:  # type: ignore[union-attr]
            x = layer(x)

    assert find_places(model, "residual", run) == ["layers.0", "layers.1"]


def test_groups_and_names_together():
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    found = [site.name for site in find_sites(model, batch, ["mlp_out", "model.norm", "residual"])]
    assert found == [
        *("model.layers.0.mlp", "model.layers.0", "model.layers.1.mlp", "model.layers.1"),
        "model.norm",
    ]


def test_a_model_without_layers():
    with pytest.raises(ValueError, match="needs layers, and this Linear has none"):
        find_sites(nn.Linear(4, 4), torch.ones(2, 4), "residual")
    bare = nn.Sequential(nn.Sequential(nn.LayerNorm(4)), nn.Sequential(nn.LayerNorm(4)))
    with pytest.raises(ValueError, match="has a linear layer that is mlp_out"):
        find_sites(bare, torch.ones(2, 4), "mlp_out")
