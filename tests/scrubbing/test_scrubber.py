"""Erasers inside models: what they do, and that they do it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import FIRST, LAST, eraser_of, hooks, outputs_of, scrubber_of
from torch import Tensor, nn

from leace_fast import Eraser, leace
from leace_fast.models import record, submodules
from leace_fast.scrubbing import Scrubber


def by_hand(model: nn.Module, erasers: Any) -> list[Any]:
    """The same with plain hooks and the formula spelt out."""

    def hook(eraser: Eraser) -> Any:
        left, right, mean = eraser.left, eraser.right, eraser.mean
        return lambda module, args, x: x - ((x - mean) @ right.mT) @ left.mT

    modules = submodules(model, erasers)
    return [modules[site].register_forward_hook(hook(eraser)) for site, eraser in erasers.items()]


@pytest.fixture
def llama() -> tuple[Any, dict[str, Tensor], Scrubber]:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    return model, batch, scrubber_of(model, batch)


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_attached_is_the_formula_at_every_site_and_leaves_no_trace(name):
    model, batch = tiny_models.build(name), tiny_models.batch(name)
    scrubber = scrubber_of(model, batch)
    clean = outputs_of(model, batch)
    with scrubber.attached(model) as same:
        erased = outputs_of(same, batch)
    handles = by_hand(model, scrubber)
    wanted = outputs_of(model, batch)
    for handle in handles:
        handle.remove()
    scale = clean.abs().max()
    assert torch.allclose(erased, wanted, rtol=0, atol=1e-11 * float(scale))
    assert (erased - clean).abs().max() > 1e-3 * scale
    assert torch.equal(outputs_of(model, batch), clean) and hooks(model) == 0


@pytest.mark.parametrize("name", [*tiny_models.DECODERS, "t5"])
def test_generate_is_greedy_decoding_with_erased_activations(name):
    model, batch = tiny_models.build(name), tiny_models.batch(name, rows=1)
    scrubber = scrubber_of(model, batch)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    prompt = {key: value for key, value in batch.items() if key != "decoder_input_ids"}
    with scrubber.attached(model):
        generated = model.generate(**prompt, **options)
    handles = by_hand(model, scrubber)
    ids = batch["input_ids"] if name != "t5" else torch.zeros(1, 1, dtype=torch.int64)
    eos = [] if model.config.eos_token_id is None else [model.config.eos_token_id]
    for _ in range(6):
        inputs = {"input_ids": ids} if name != "t5" else {**prompt, "decoder_input_ids": ids}
        logits = outputs_of(model, inputs)[:, -1]
        logits[:, eos] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    for handle in handles:
        handle.remove()
    assert torch.equal(generated, ids)


def test_erasers_that_were_fitted_inside_erase_the_concept_inside(llama):
    model, _, _ = llama
    batch = tiny_models.batch("llama", rows=24)
    batch["concept_labels"] = torch.randint(0, 2, batch["input_ids"].shape, generator=torch.Generator().manual_seed(3))
    with record(model, FIRST, num_classes=2) as moments, torch.no_grad():
        model(**batch)
    scrubber = Scrubber({FIRST: leace(moments[FIRST])})
    with scrubber.attached(model), record(model, FIRST, num_classes=2) as after, torch.no_grad():
        model(**batch)
    gap = moments[FIRST].class_mean_differences.norm()
    assert gap > 0.1 and after[FIRST].class_mean_differences.norm() < 1e-11 * gap


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrower_models(dtype):
    model, batch = tiny_models.build("llama", dtype), tiny_models.batch("llama")
    scrubber = scrubber_of(model, batch)
    wanted: dict[str, Tensor] = {}
    handle = model.get_submodule(FIRST).register_forward_hook(lambda m, a, x: wanted.update(x=x))
    clean = outputs_of(model, batch)
    before = wanted["x"]
    with scrubber.attached(model):
        erased = outputs_of(model, batch)
    handle.remove()
    assert erased.dtype == dtype and not torch.equal(erased, clean)
    assert torch.equal(wanted["x"], scrubber[FIRST](before))  # and hooks of others see the erased output


@pytest.mark.parametrize("strength", [0.0, 2.0, -1.0])
def test_other_strengths_and_rank_zero_pass_the_self_test(llama, strength):
    model, batch, scrubber = llama
    clean = outputs_of(model, batch)
    with Scrubber({site: eraser.scaled(strength) for site, eraser in scrubber.items()}).attached(model):
        assert torch.equal(outputs_of(model, batch), clean) == (strength == 0)
    with Scrubber({FIRST: Eraser(torch.empty(16, 0), torch.empty(0, 16))}).attached(model):
        assert torch.equal(outputs_of(model, batch), clean)


def test_scrubbers_nest_in_order_but_not_with_themselves(llama):
    model, batch, scrubber = llama
    other = Scrubber({FIRST: eraser_of("another", 3)})
    with Scrubber({FIRST: scrubber[FIRST]}).attached(model), other.attached(model):
        both = outputs_of(model, batch)
    handles = by_hand(model, {FIRST: scrubber[FIRST]}) + by_hand(model, other)  # hooks run in this order
    wanted = outputs_of(model, batch)
    for handle in handles:
        handle.remove()
    assert torch.allclose(both, wanted, rtol=0, atol=1e-11 * float(wanted.abs().max()))
    with scrubber.attached(model):
        once = outputs_of(model, batch)
        with pytest.raises(ValueError, match="attached to this model already"), scrubber.attached(model):
            pass
        assert torch.equal(outputs_of(model, batch), once)  # the refusal detached nothing
        with scrubber.attached(tiny_models.build("llama")):  # another model may have it
            pass
    with scrubber.attached(model):
        assert torch.equal(outputs_of(model, batch), once)


def test_gradients_flow_through_the_erasure(llama):
    model, batch, scrubber = llama
    with scrubber.attached(model):
        model(**batch).logits.square().mean().backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for _ in by_hand(model, scrubber):
        pass
    model(**batch).logits.square().mean().backward()
    for mine, parameter in zip(got, model.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=1e-6, atol=1e-10 * float(parameter.grad.abs().max()))


def test_an_error_inside_detaches(llama):
    model, batch, scrubber = llama
    clean = outputs_of(model, batch)
    with pytest.raises(KeyError), scrubber.attached(model):
        raise KeyError
    assert hooks(model) == 0 and torch.equal(outputs_of(model, batch), clean)


def test_compiled_models_are_erased_whenever_they_were_compiled(llama):
    model, batch, scrubber = llama
    clean = outputs_of(model, batch)
    with scrubber.attached(model):
        erased = outputs_of(model, batch)
    early = torch.compile(model, backend="eager")
    assert torch.allclose(outputs_of(early, batch), clean)
    with scrubber.attached(model):
        late = torch.compile(model, backend="eager", fullgraph=True)  # no graph breaks
        assert torch.allclose(outputs_of(early, batch), erased)
        assert torch.allclose(outputs_of(late, batch), erased)
    assert torch.allclose(outputs_of(early, batch), clean)
    assert torch.allclose(outputs_of(late, batch), clean)


# ----------------------------------------------------- nobody is silently un-erased


class Unhooked(nn.LayerNorm):
    """A norm whose calls run no hooks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class Fixed(nn.LayerNorm):
    """A norm whose calls run neither hooks nor the forward of another type."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return nn.LayerNorm.forward(self, *args, **kwargs)


def test_a_module_that_runs_no_hooks_is_erased(llama):
    model, batch, scrubber = llama
    norm = model.model.layers[1].post_attention_layernorm = Unhooked(16, dtype=torch.float64)
    x = torch.randn(3, 16, dtype=torch.float64)
    wanted = scrubber[LAST](norm(x))
    with scrubber.attached(model):
        assert torch.equal(norm(x), wanted)
        outputs_of(model, batch)


def test_a_module_that_nothing_can_be_put_into_is_found_out(llama):
    model, batch, scrubber = llama
    model.model.layers[1].post_attention_layernorm = Fixed(16, dtype=torch.float64)
    clean = outputs_of(model, batch)
    with pytest.raises(RuntimeError, match=f"without being erased at '{LAST}'.*100.0%"), scrubber.attached(model):
        raise AssertionError("the block must not run")
    assert hooks(model) == 0 and torch.equal(outputs_of(model, batch), clean)


@pytest.mark.parametrize("hook", [lambda m, a, x: x * 1.5, lambda m, a, x: torch.zeros_like(x)])
def test_a_later_hook_that_undoes_the_erasure_is_found_out(llama, hook):
    model, _, scrubber = llama
    forward = type(model.get_submodule(FIRST)).forward
    handle = model.get_submodule(FIRST).register_forward_hook(lambda m, a, x: forward(m, *a))
    with pytest.raises(RuntimeError, match="would run without being erased"), scrubber.attached(model):
        raise AssertionError("the block must not run")
    handle.remove()
    handle = model.get_submodule(FIRST).register_forward_hook(hook)
    with pytest.raises(RuntimeError, match="would run without being erased"), scrubber.attached(model):
        raise AssertionError("the block must not run")


def test_a_forward_pass_that_goes_round_the_module_is_found_out(llama):
    model, batch, scrubber = llama
    layer = model.model.layers[0]
    kept = layer.input_layernorm

    def fused(*args: Any, **kwargs: Any) -> Any:  # reads the norm's weights and does not call it
        layer.input_layernorm = nn.RMSNorm(16, dtype=torch.float64)
        try:
            return type(layer).forward(layer, *args, **kwargs)
        finally:
            layer.input_layernorm = kept

    layer.forward = fused
    with pytest.raises(RuntimeError, match=f"ran without being erased at '{FIRST}'"), scrubber.attached(model):
        outputs_of(model, batch)
    assert hooks(model) == 0
    del layer.forward
    with pytest.raises(RuntimeError, match=f"ran without being erased at '{FIRST}'"), scrubber.attached(model):
        layer.input_layernorm = nn.RMSNorm(16, dtype=torch.float64)
        outputs_of(model, batch)
    assert hooks(model) == 0


def test_sites_that_are_no_norms(llama):
    model, batch, _ = llama
    model.train()  # which the self-test must leave alone
    scrubber = Scrubber({"model.layers.0.mlp": eraser_of("mlp"), "model.layers.1": eraser_of("layer")})
    with scrubber.attached(model):
        erased = outputs_of(model, batch)
    handles = by_hand(model, scrubber)
    assert torch.allclose(outputs_of(model, batch), erased)
    for handle in handles:
        handle.remove()
    assert all(module.training for module in model.modules())
    for site in ("model.layers.0.mlp", "model.layers.1"):
        narrow = Scrubber({site: eraser_of("", 1, 8)})
        with pytest.raises(ValueError, match="its last dimension"), narrow.attached(model):
            outputs_of(model, batch)
    with pytest.raises(ValueError, match="of width 24, its eraser is for rows of width 16"):
        Scrubber({"model.layers.0.mlp.up_proj": eraser_of("")}).attached(model).__enter__()


def test_dropout_does_not_disturb_the_self_test():
    dropout = nn.Dropout(0.5)
    model = nn.Sequential(nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4), dropout)).double().train()
    with Scrubber({"1": eraser_of("1", 1, 4)}).attached(model):
        assert dropout.training
        left = eraser_of("1", 1, 4)
        hidden = model(torch.randn(5, 4, dtype=torch.float64))
        assert ((hidden - left.mean) @ left.right.mT).abs().max() < 1e-12


@pytest.mark.parametrize("dim", [1, 8, 17])
def test_wrong_widths(llama, dim):
    model, _, scrubber = llama
    wrong = Scrubber({FIRST: scrubber[FIRST], LAST: eraser_of(LAST, 1, dim)})
    with pytest.raises(ValueError, match=f"'{LAST}'.* width {dim}"), wrong.attached(model):
        raise AssertionError("the block must not run")
    assert hooks(model) == 0


def test_unknown_sites(llama):
    model, _, scrubber = llama
    deeper = Scrubber({"model.layers.2.mlp.norm": scrubber[FIRST]})
    with pytest.raises(ValueError, match="no site 'model.layers.2.mlp.norm'"), deeper.attached(model):
        raise AssertionError("the block must not run")
    with (
        pytest.raises(ValueError, match="nearest: gpt_neox.layers.0.input_l"),
        scrubber.attached(tiny_models.build("gpt_neox")),
    ):
        raise AssertionError("the block must not run")


# ---------------------------------------------------------------------- the mapping


def test_a_mapping_that_does_not_change(llama):
    _, _, scrubber = llama
    assert list(scrubber)[0] == FIRST and len(scrubber) == 4 and LAST in scrubber and "lm_head" not in scrubber
    assert all(eraser.site == site for site, eraser in scrubber.items())
    with pytest.raises(TypeError):
        scrubber[FIRST] = scrubber[LAST]  # type: ignore[index]
    given = dict(scrubber)
    held = Scrubber(given)
    del given[FIRST]
    assert FIRST in held
    assert repr(Scrubber(scrubber, "org/model")) == "Scrubber(4 sites for org/model: custom, rank 2)"
    assert {e.dtype for e in scrubber.to(dtype=torch.float32).values()} == {torch.float32}
    assert scrubber.to(dtype=torch.float32)[FIRST].site == FIRST and scrubber[FIRST].dtype == torch.float64


def test_a_copy_is_attached_to_nothing(llama):
    """Nor is what another process gets."""
    model, batch, erasers = llama
    scrubber = Scrubber.of_model(model, erasers)
    with scrubber.attached(model):
        wanted = outputs_of(model, batch)
        copies = [copy.deepcopy(scrubber), pickle.loads(pickle.dumps(scrubber))]
    for twin in copies:
        assert twin.identity == scrubber.identity
        with pytest.raises(ValueError, match="not attached"):
            twin.detach_(model)
        with twin.attached(model):
            assert torch.equal(outputs_of(model, batch), wanted)


@pytest.mark.parametrize(
    ("erasers", "error"), [({}, ValueError), ({"a": 3}, TypeError), ({3: eraser_of("a")}, TypeError)]
)
def test_wrong_erasers(erasers, error):
    with pytest.raises(error):
        Scrubber(erasers)
