"""Hooks of TransformerLens, against the erased model in transformers: as it is loaded, and in compatibility mode."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import eraser_of
from torch import nn

import leace_fast as lf
from leace_fast.demo import ASSETS, load_language_model
from leace_fast.integrations import transformer_lens_hooks

lens: Any = pytest.importorskip("transformer_lens", reason="pip install transformer-lens (test_with_extras.py does)")
pytestmark = pytest.mark.filterwarnings("ignore")

MOST = 1e-4  # of log-probabilities
IDS = torch.tensor([[5, 9, 33, 7, 61, 12, 40, 3], [18, 22, 4, 50, 51, 52, 53, 9]])
FAMILIES = {"llama": "layers", "gpt2": "transformer.h", "gemma2": "layers"}


def norms(model: Any, name: str) -> list[str]:
    """The norms in front of attention and MLP: those whose weight compatibility mode takes out."""
    sites = [site.name for site in lf.find_sites(model, {"input_ids": IDS}) if FAMILIES[name] in site.name]
    return [site for site in sites if name != "gemma2" or "post_attention" not in site and "post_feed" not in site]


def built(name: str, folder: Any) -> tuple[Any, Any]:
    """A random model, and a bridge over a copy of it."""
    model = tiny_models.build(name, torch.float32)
    if name == "gemma2":
        model.set_attn_implementation("eager")
    model.save_pretrained(folder)
    tokenizer = load_language_model(ASSETS)[1]
    tokenizer.save_pretrained(folder)
    bridge = lens.TransformerBridge.boot_transformers(
        str(folder), hf_model=copy.deepcopy(model), tokenizer=tokenizer, device="cpu"
    )
    return model, bridge


@torch.no_grad()
def log_probabilities(model: Any, hooks: Any = None) -> torch.Tensor:
    if isinstance(model, lens.TransformerBridge):
        logits = model.run_with_hooks(IDS, fwd_hooks=hooks or [])
    else:
        logits = model(input_ids=IDS, use_cache=False).logits
    return logits.float().log_softmax(-1)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of log-probabilities: some models keep what their head adds to all tokens, and compatibility mode does not."""
    return float((one - other).abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_as_it_is_loaded_and_in_compatibility_mode(name: str, tmp_path: Any) -> None:
    model, bridge = built(name, tmp_path)
    sites = norms(model, name)
    ids = torch.arange(3, 63).repeat(20)[torch.randperm(1200, generator=torch.Generator().manual_seed(0))]
    ids = ids.reshape(120, 10)
    scrubber = lf.scrub(model, [{"input_ids": ids, "concept_labels": ids % 3}], sites=sites)
    clean = log_probabilities(model)
    with scrubber.attached(model):
        wanted = log_probabilities(model)
    assert distance(clean, wanted) > 100 * MOST
    hooks = transformer_lens_hooks(bridge, scrubber)
    assert len(hooks) == len(sites) and hooks[0][0] == "blocks.0.ln1.hook_out"
    assert distance(log_probabilities(bridge), clean) < MOST
    assert distance(log_probabilities(bridge, hooks), wanted) < MOST
    with scrubber.attached(bridge.original_model):
        assert distance(log_probabilities(bridge), wanted) < MOST, "names resolve through the bridge"
    bridge.enable_compatibility_mode(disable_warnings=True)
    assert distance(log_probabilities(bridge), clean) < MOST
    assert distance(log_probabilities(bridge, hooks), wanted) < MOST
    with pytest.raises(ValueError, match="the weights of the norms are gone"):
        transformer_lens_hooks(bridge, scrubber)
    again = transformer_lens_hooks(bridge, scrubber, clean=model)
    assert distance(log_probabilities(bridge, again), wanted) < MOST
    with pytest.raises(ValueError, match="use leace_fast.integrations.transformer_lens_hooks"):
        scrubber.attach_(bridge.original_model)
    raw = [
        (point, lambda value, hook, eraser=scrubber[site]: eraser(value))
        for (point, _), site in zip(hooks, sites, strict=True)
    ]
    assert distance(log_probabilities(bridge, raw), wanted) > 10 * MOST, "the eraser itself would be wrong there"


def test_the_demo(tmp_path: Any) -> None:
    model, tokenizer = load_language_model(ASSETS)
    model = model.float()
    ids = torch.arange(3, 2051).reshape(16, 128) % 4000
    scrubber = lf.scrub(model, [{"input_ids": ids, "concept_labels": ids % 3}])
    copied = copy.deepcopy(model)
    bridge = lens.TransformerBridge.boot_transformers(str(ASSETS / "model"), hf_model=copied, tokenizer=tokenizer)
    hooks, clean = transformer_lens_hooks(bridge, scrubber), log_probabilities(model)
    with scrubber.attached(model):
        wanted = log_probabilities(model)
    plain = distance(log_probabilities(bridge, hooks), wanted)
    bridge.enable_compatibility_mode(disable_warnings=True)
    apart = distance(log_probabilities(bridge, hooks), wanted)
    print(f"TransformerLens: {plain:.1e}, in compatibility mode {apart:.1e}, of {distance(clean, wanted):.1f}")
    assert max(plain, apart) < MOST


def test_an_eraser_that_moves_the_mean_of_a_layer_norm(tmp_path: Any) -> None:
    """The layers behind are centred in compatibility mode: what it leaves there would be lost, so it is refused."""
    _, bridge = built("gpt2", tmp_path)
    site = "transformer.h.0.ln_1"
    hooks = transformer_lens_hooks(bridge, {site: eraser_of(site).with_site(site)})
    log_probabilities(bridge, hooks)
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ValueError, match="moves the mean of its rows"):
        log_probabilities(bridge, hooks)


def test_refused(tmp_path: Any) -> None:
    _, bridge = built("llama", tmp_path)
    with pytest.raises(TypeError, match="expected a TransformerBridge"):
        transformer_lens_hooks(nn.Linear(2, 2), {})
    for site, dim, message in (
        ("model.layers.9.input_layernorm", 16, "has no module"),
        ("model.layers.0.mlp", 16, "is no norm of the bridge"),
        ("model.layers.0.input_layernorm", 8, "rows of width 16"),
    ):
        with pytest.raises(ValueError, match=message):
            transformer_lens_hooks(bridge, {site: eraser_of(site, dim=dim)})
