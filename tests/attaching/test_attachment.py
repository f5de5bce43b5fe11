"""Nobody is silently un-erased: the ways in which a model could run round its erasers, one by one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import FIRST, eraser_of, hooks, outputs_of, scrubber_of
from tiny_models import Block
from torch import Tensor, nn

from leace_fast import Scrubber
from leace_fast.models import tap

pytestmark = pytest.mark.parametrize("fuse", [False, True], ids=["hooked", "fused"])


@pytest.fixture
def llama() -> tuple[Any, dict[str, Tensor], Scrubber]:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    return model, batch, scrubber_of(model, batch)


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch.compiler.reset()


@pytest.fixture
def block() -> tuple[nn.Module, Tensor, Scrubber]:
    torch.manual_seed(0)
    return Block().eval(), torch.randn(5, 8), Scrubber({"norm": eraser_of("norm", 2, 8)})


def close(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------ copies and wrappers


def test_a_deep_copy_is_erased(fuse, llama):
    model, batch, scrubber = llama
    with scrubber.attached(model, fuse=fuse):
        wanted = outputs_of(model, batch)
        twin = copy.deepcopy(model)
    assert torch.equal(outputs_of(twin, batch), wanted)
    assert not torch.equal(outputs_of(model, batch), wanted)


def test_a_deep_copy_refuses_to_run_where_a_hook_erases(fuse, llama):
    model, batch, scrubber = llama
    with tap(model, [FIRST], lambda site, output: None), scrubber.attached(model, fuse=False):
        wanted = outputs_of(model, batch)
        twin = copy.deepcopy(model)
        with pytest.raises(RuntimeError, match="was copied while erasers"):
            outputs_of(twin, batch)
        assert torch.equal(outputs_of(model, batch), wanted)


def test_replicas_are_erased(fuse, block):
    """What `nn.DataParallel` makes of each module for another device."""
    model, x, scrubber = block
    with scrubber.attached(model, fuse=fuse):
        wanted = model(x)
        replica = model._replicate_for_data_parallel()
        norm = model.norm._replicate_for_data_parallel()
        for name, parameter in model.norm.named_parameters():
            setattr(norm, name, parameter.detach().clone())
        replica._modules["norm"] = norm
        assert torch.equal(Block.forward(replica, x), wanted)


def test_functional_call(fuse, block):
    model, x, scrubber = block
    weights = {name: part + 0.1 for name, part in model.named_parameters()}
    clean = torch.func.functional_call(model, weights, (x,))
    with scrubber.attached(model, fuse=fuse):
        erased = torch.func.functional_call(model, weights, (x,))
    moved = Block()
    moved.load_state_dict(weights)
    with scrubber.attached(moved):
        assert close(moved(x), erased) and not close(erased, clean)


def test_vmap_over_rows(fuse, block):
    model, x, scrubber = block
    with scrubber.attached(model, fuse=fuse), torch.no_grad():
        wanted = model(x)
        try:
            got = torch.vmap(model)(x)
        except RuntimeError:  # refused aloud
            return
        assert close(got, wanted)


class Wrapper(nn.Module):
    """As data-parallel wrappers do: the model is a submodule, the names of its modules have a prefix."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._wrapped_module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped_module(*args, **kwargs)


def test_wrappers_around_the_model_and_around_its_layers(fuse, llama):
    model, batch, scrubber = llama
    with scrubber.attached(model, fuse=fuse):
        wanted = outputs_of(model, batch)
        assert torch.equal(outputs_of(Wrapper(model), batch), wanted)
        layers = list(model.model.layers)
        for i, layer in enumerate(layers):
            model.model.layers[i] = Wrapper(layer)
        assert torch.equal(outputs_of(model, batch), wanted)
    clean = outputs_of(model, batch)
    assert not torch.equal(clean, wanted)
    with pytest.raises(ValueError, match="no site.*_wrapped_module"), scrubber.attached(model, fuse=fuse):
        raise AssertionError("the block must not run")
    assert hooks(model) == 0 and torch.equal(outputs_of(model, batch), clean)


@pytest.mark.parametrize("when", ["at once", "after a pass"])
def test_a_module_that_was_replaced(fuse, llama, when):
    model, batch, scrubber = llama
    layer = model.model.layers[0]
    with pytest.raises(RuntimeError, match=f"without being erased at '{FIRST}'"), scrubber.attached(model, fuse=fuse):
        if when == "after a pass":
            outputs_of(model, batch)
        layer.input_layernorm = nn.RMSNorm(16).double()
        outputs_of(model, batch)
    assert hooks(model) == 0


@pytest.mark.parametrize("name", ["layer", "norm"])
def test_what_holds_a_module_that_was_replaced_after_a_pass(fuse, llama, name):
    model, batch, scrubber = llama
    layers, layer = model.model.layers, model.model.layers[1]
    with scrubber.attached(model, fuse=fuse):
        outputs_of(model, batch)
        if name == "layer":
            layers[1] = tiny_models.build("llama").model.layers[1]
        else:  # and is still held
            layer.kept, layer.post_attention_layernorm = layer.post_attention_layernorm, nn.RMSNorm(16).double()
        with pytest.raises(RuntimeError, match="without being erased at 'model.layers.1.*has taken the place"):
            outputs_of(model, batch)


class Stages(nn.Module):
    """The first is left out when it has run once, as the encoder by `generate`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.kept = Block(), Block(), None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.first(x)
        return self.second(x + self.kept)


def test_passes_that_leave_out_a_site(fuse):
    model: Any = Stages().eval()
    x = torch.randn(5, 8)
    sites = ["first.norm", "second.norm"]
    with torch.no_grad(), Scrubber({site: eraser_of(site, 2, 8) for site in sites}).attached(model, fuse=fuse):
        wanted = model(x)
        assert torch.equal(model(x), wanted)
        model.first = Wrapper(model.first)
        assert torch.equal(model(x), wanted)
        model.first = Block()
        with pytest.raises(RuntimeError, match="'first.norm': another module has taken the place"):
            model(x)


def test_a_module_whose_forward_was_replaced_before(fuse, llama):
    """As offloading libraries do it."""
    model, batch, scrubber = llama
    norm = model.get_submodule(FIRST)
    norm.forward = type(norm).forward.__get__(norm)
    with scrubber.attached(tiny_models.build("llama")) as other:
        wanted = outputs_of(other, batch)
    if fuse:
        with pytest.warns(UserWarning, match="its forward has been replaced"):
            scrubber.attach_(model, fuse=True)
    else:
        scrubber.attach_(model)
    assert close(outputs_of(model, batch), wanted)
    scrubber.detach_(model)


def test_a_forward_that_is_replaced_afterwards(fuse, llama):
    model, batch, scrubber = llama
    norm = model.get_submodule(FIRST)
    original = type(tiny_models.build("llama").get_submodule(FIRST)).forward
    with scrubber.attached(model, fuse=fuse):
        wanted = outputs_of(model, batch)
        norm.forward = original.__get__(norm)
        with pytest.raises(RuntimeError, match=f"without being erased at '{FIRST}'.*attach it again"):
            outputs_of(model, batch)
        del norm.forward
        assert torch.equal(outputs_of(model, batch), wanted)


def test_attach_and_detach_by_hand(fuse, llama):
    model, batch, scrubber = llama
    clean = outputs_of(model, batch)
    with pytest.raises(ValueError, match="not attached to this model"):
        scrubber.detach_(model)
    with scrubber.attached(model, fuse=fuse):
        wanted = outputs_of(model, batch)
    scrubber.attach_(model, fuse=fuse)
    with pytest.raises(ValueError, match="attached to this model already"):
        scrubber.attach_(model)
    assert torch.equal(outputs_of(model, batch), wanted)
    scrubber.detach_(model)
    assert torch.equal(outputs_of(model, batch), clean) and hooks(model) == 0
