"""Norms that erase in the pass that norms: that they agree with hooks, and what becomes of the model."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import tiny_models
import torch
from fused_norms import RMS, fuse
from scrubbed_models import FIRST, LAST, eraser_of, hooks, outputs_of, scrubber_of
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber
from leace_fast._ops import add_rms_norm_project, rms_norm


@pytest.fixture
def llama() -> tuple[Any, dict[str, Tensor], Scrubber]:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    return model, batch, scrubber_of(model, batch)


# ------------------------------------------------------------------- in models


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_fused_models_agree_with_hooked_ones_and_come_back_bit_for_bit(name):
    model, batch = tiny_models.build(name), tiny_models.batch(name)
    scrubber = scrubber_of(model, batch)
    kinds = [type(module) for module in model.modules()]
    state = {key: part.clone() for key, part in model.state_dict().items()}
    clean = outputs_of(model, batch)
    with scrubber.attached(model):
        hooked = outputs_of(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every site is fused
        with scrubber.attached(model, fuse=True):
            fused = outputs_of(model, batch)
            assert hooks(model) == 1  # the check of the model
            inside = model.state_dict()
    assert (fused - hooked).norm() <= 5e-6 * (hooked - clean).norm()  # many norms compute in float32
    assert not torch.equal(fused, clean)
    assert list(inside) == list(state) and all(torch.equal(inside[key], part) for key, part in state.items())
    assert [type(module) for module in model.modules()] == kinds and hooks(model) == 0
    assert torch.equal(outputs_of(model, batch), clean)


@pytest.mark.parametrize("name", [*tiny_models.DECODERS, "t5"])
def test_generate(name):
    model, batch = tiny_models.build(name), tiny_models.batch(name, rows=1)
    scrubber = scrubber_of(model, batch)
    prompt = {key: value for key, value in batch.items() if key != "decoder_input_ids"}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with scrubber.attached(model):
        hooked = model.generate(**prompt, **options)
    with scrubber.attached(model, fuse=True):
        assert torch.equal(model.generate(**prompt, **options), hooked)


def test_generate_with_a_static_cache(llama):
    model, _, scrubber = llama
    options = {"max_new_tokens": 8, "do_sample": False}
    prompt = tiny_models.batch("llama", rows=1)
    with scrubber.attached(model):
        plain = model.generate(**prompt, **options)
        assert torch.equal(model.generate(**prompt, **options, cache_implementation="static"), plain)
    with scrubber.attached(model, fuse=True):
        assert torch.equal(model.generate(**prompt, **options, cache_implementation="static"), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_narrower_models_round_once(name, dtype):
    """Against float64: at most the error of the norm and its eraser one after the other."""
    model, batch = tiny_models.build(name, dtype), tiny_models.batch(name)
    scrubber = scrubber_of(model, batch)
    site = next(iter(scrubber))
    norm = model.get_submodule(site)
    x = torch.randn(400, tiny_models.WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    if name == "gpt2":
        normed = copy.deepcopy(norm).double()(x.double())
    else:  # these compute in float32 whatever they are given
        offset = 1.0 if name == "gemma2" else 0.0
        normed = rms_norm(x.double(), norm.weight.double(), 1e-6, offset)
    exact = scrubber[site](normed)
    with torch.no_grad(), scrubber.attached(model):
        hooked = norm(x)
    with torch.no_grad(), scrubber.attached(model, fuse=True):
        fused = norm(x)
    error, apart = (fused - exact).norm(), (hooked - exact).norm()
    assert fused.dtype == dtype and error <= (1.5 if dtype == torch.float32 else 1.01) * apart
    assert error <= torch.finfo(dtype).eps * exact.norm()


def test_factors_stay_in_float32_when_the_model_is_converted(llama):
    model, batch, scrubber = llama
    norm, eraser = model.get_submodule(FIRST), scrubber[FIRST]
    x = torch.randn(50, tiny_models.WIDTH)
    with torch.no_grad(), scrubber.attached(model, fuse=True):
        for convert, dtype in ((model.bfloat16, torch.bfloat16), (model.half, torch.float16)):
            convert()
            left, right, mean = (part.float() for part in (eraser.left, eraser.right, eraser.mean))
            rows = x.to(dtype)
            wanted, _ = add_rms_norm_project(rows, None, norm.weight, norm.variance_epsilon, left, right, mean)
            assert norm(rows).dtype == dtype and torch.equal(norm(rows), wanted)
            outputs_of(model, batch)
        model.to(torch.float64)
        assert ((norm(x.double()) - eraser.mean) @ eraser.right.mT).abs().max() < 1e-6
    assert next(model.parameters()).dtype == torch.float64


def test_weights_that_are_loaded_or_replaced_inside_are_used(llama):
    model, batch, scrubber = llama
    other = tiny_models.build("llama", seed=5)
    with scrubber.attached(other):
        wanted = outputs_of(other, batch)
    with scrubber.attached(model, fuse=True):
        before = outputs_of(model, batch)
        with torch.no_grad():
            called = torch.func.functional_call(model, dict(other.named_parameters()), (), batch)[0]
        assert torch.allclose(called, wanted, rtol=1e-5, atol=1e-5) and not torch.allclose(before, wanted)
        assert torch.equal(outputs_of(model, batch), before)
        model.load_state_dict(other.state_dict(), assign=True)
        assert torch.allclose(outputs_of(model, batch), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(outputs_of(model, batch), outputs_of(other, batch))


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_gradients_and_checkpointing(llama):
    model, batch, scrubber = llama
    model.train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**batch, use_cache=False).logits.square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    with scrubber.attached(model):
        wanted = gradients()
        model.gradient_checkpointing_enable()
        again = gradients()
    with scrubber.attached(model, fuse=True):
        checkpointed = gradients()
        model.gradient_checkpointing_disable()
        fused = gradients()
    for one, *others in zip(wanted, again, checkpointed, fused, strict=True):
        for other in others:
            assert torch.allclose(other, one, rtol=1e-4, atol=1e-6 * float(one.abs().max()))


def test_autocast_and_other_dtypes_give_what_the_norm_gives(llama):
    model, _, _ = llama
    norm = nn.LayerNorm(16)
    eraser = eraser_of("", 2)
    x = torch.randn(4, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = eraser(norm(x))
    end = fuse(norm, eraser)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), wanted) and norm(x).dtype == wanted.dtype
    end()
    norm = model.get_submodule(FIRST)  # float64 weights
    wanted = eraser(norm(x.float()))
    end = fuse(norm, eraser)
    assert torch.equal(norm(x.float()), wanted) and torch.equal(norm(hidden_states=x.float()), wanted)
    end()


def test_compiled_in_one_graph_whenever_it_was_compiled(llama):
    torch.compiler.reset()
    model, batch, scrubber = llama
    clean = outputs_of(model, batch)
    early = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(outputs_of(early, batch), clean)
    other = torch.compile(nn.Linear(4, 4), backend="eager")
    other(torch.zeros(4))
    for _ in range(2):
        with scrubber.attached(model, fuse=True):
            wanted = outputs_of(model, batch)
            assert not torch.allclose(wanted, clean)
            assert torch.allclose(outputs_of(early, batch), wanted)
            scrubber.verify(model, early, batch)
        with torch.compiler.set_stance("fail_on_recompile"):  # neither the model nor anything else was forgotten
            assert torch.allclose(outputs_of(early, batch), clean)
            other(torch.zeros(4))


# ------------------------------------------------------------------- copies and files


def test_a_deep_copy_stays_erased(llama):
    model, batch, scrubber = llama
    with scrubber.attached(model, fuse=True):
        wanted = outputs_of(model, batch)
        twin = copy.deepcopy(model)
        assert torch.equal(outputs_of(twin, batch), wanted)
    assert torch.equal(outputs_of(twin, batch), wanted)
    assert not torch.equal(outputs_of(model, batch), wanted)
    twin.model.layers[0].input_layernorm = copy.deepcopy(model.model.layers[0].input_layernorm)
    with pytest.raises(RuntimeError, match="without being erased"):  # and keeps watch
        outputs_of(twin, batch)


def test_what_is_saved_is_the_clean_model(llama, tmp_path):
    model, batch, scrubber = llama
    with scrubber.attached(model, fuse=True):
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.equal(outputs_of(loaded, batch), outputs_of(model, batch))


# ------------------------------------------------------------------- what is not fused, and order


def test_other_sites_run_a_hook_and_that_is_told(llama):
    model, batch, _ = llama
    layer = model.model.layers[1]
    layer.input_layernorm = RMS(16, power=0.4).double()
    sites = [FIRST, "model.layers.1.input_layernorm", "model.layers.0.mlp"]
    scrubber = Scrubber({site: eraser_of(site) for site in sites})
    with scrubber.attached(model):
        hooked = outputs_of(model, batch)
    with pytest.warns(UserWarning) as told, scrubber.attached(model, fuse=True):
        fused = outputs_of(model, batch)
    assert [str(each.message).split("' is erased after")[0][1:] for each in told] == sites[1:]
    assert all(each.filename == __file__ for each in told)
    assert torch.allclose(fused, hooked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [(True, True), (True, False), (False, True)])
@pytest.mark.filterwarnings("ignore:.*is erased after")
def test_two_scrubbers_act_in_the_order_in_which_they_came_and_leave_in_any(llama, fused):
    model, batch, _ = llama
    clean = outputs_of(model, batch)
    one, two = Scrubber({FIRST: eraser_of("one")}), Scrubber({FIRST: eraser_of("two", 3)})
    alone = []
    for scrubber in (one, two):
        with scrubber.attached(model):
            alone.append(outputs_of(model, batch))
    with one.attached(model), two.attached(model):
        both = outputs_of(model, batch)
    for first_out, left in ((one, alone[1]), (two, alone[0])):
        one.attach_(model, fuse=fused[0])
        two.attach_(model, fuse=fused[1])
        assert torch.allclose(outputs_of(model, batch), both, rtol=1e-5, atol=1e-5)
        first_out.detach_(model)
        assert torch.allclose(outputs_of(model, batch), left, rtol=1e-5, atol=1e-5)
        (two if first_out is one else one).detach_(model)
        assert torch.equal(outputs_of(model, batch), clean) and hooks(model) == 0
        assert "LlamaRMSNorm" in str(type(model.get_submodule(FIRST)).__mro__[0])


def test_a_type_that_another_library_made_meanwhile(llama):
    """As `fully_shard` does: the norm's type is then a subtype of ours, and ends as a norm that erases nothing."""
    model, batch, scrubber = llama
    clean = outputs_of(model, batch)
    scrubber.attach_(model, fuse=True)
    wanted = outputs_of(model, batch)
    norm = model.get_submodule(FIRST)
    norm.__class__ = type("Sharded", (type(norm),), {})
    assert torch.equal(outputs_of(model, batch), wanted)
    scrubber.detach_(model)
    assert torch.equal(outputs_of(model, batch), clean)


def test_a_hook_of_others_sees_the_erased_output_and_may_not_undo_it(llama):
    model, batch, scrubber = llama
    norm, seen = model.get_submodule(FIRST), []
    handle = norm.register_forward_hook(lambda module, args, output: seen.append(output))
    with scrubber.attached(model, fuse=True):
        outputs_of(model, batch)
    eraser = scrubber[FIRST]
    assert ((seen[-1] - eraser.mean) @ eraser.right.mT).abs().max() < 1e-6
    handle.remove()
    norm.register_forward_hook(lambda module, args, output: output * 1.5)
    with pytest.raises(RuntimeError, match="would run without being erased"), scrubber.attached(model, fuse=True):
        raise AssertionError("the block must not run")
    assert hooks(model) == 1 and "fused" not in str(vars(norm))


def test_rank_zero_other_strengths_and_linear_erasers(llama):
    model, batch, scrubber = llama
    clean = outputs_of(model, batch)
    nothing = Eraser(torch.empty(16, 0), torch.empty(0, 16))
    for eraser in (nothing, scrubber[FIRST].scaled(0.0)):
        with Scrubber({FIRST: eraser}).attached(model, fuse=True):
            assert torch.allclose(outputs_of(model, batch), clean, rtol=1e-5, atol=1e-5)
    for eraser in (scrubber[FIRST].scaled(2.0), Eraser(scrubber[FIRST].left, scrubber[FIRST].right)):
        with Scrubber({FIRST: eraser}).attached(model):
            wanted = outputs_of(model, batch)
        with Scrubber({FIRST: eraser}).attached(model, fuse=True):
            assert torch.allclose(outputs_of(model, batch), wanted, rtol=1e-5, atol=1e-5)


def test_a_module_replaced_after_it_was_fused_is_found_out(llama):
    model, batch, scrubber = llama
    with pytest.raises(RuntimeError, match=f"without being erased at '{LAST}'"), scrubber.attached(model, fuse=True):
        outputs_of(model, batch)
        model.model.layers[1].post_attention_layernorm = nn.RMSNorm(16, dtype=torch.float64)
        outputs_of(model, batch)
    assert hooks(model) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bert"])
@pytest.mark.parametrize("fuse", [False, True])
def test_compiled_with_inductor_in_one_graph(name, fuse):
    torch.compiler.reset()
    model, batch = tiny_models.build(name, torch.float32), tiny_models.batch(name, dtype=torch.float32)
    scrubber = scrubber_of(model, batch)
    compiled = torch.compile(model, fullgraph=True)
    clean = outputs_of(compiled, batch)
    for _ in range(2):
        with scrubber.attached(model, fuse=fuse):
            wanted = outputs_of(model, batch)
            assert torch.allclose(outputs_of(compiled, batch), wanted, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(wanted, clean, rtol=1e-2, atol=1e-2)
            scrubber.verify(model, compiled, batch)
        assert torch.equal(outputs_of(compiled, batch), clean)
