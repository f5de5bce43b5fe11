"""Torch reads weights past modules, libraries replace forwards and compute layers again, threads share a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import FIRST, eraser_of, outputs_of, scrubber_of
from tiny_models import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leace_fast import Scrubber

WIDTH = 16


def encoder(nested: bool = True, norm_first: bool = False) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, dropout=0.0, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested and not norm_first)


PARTS = {
    "norms": ("norm1", "norm2"),
    "one norm": ("norm2",),
    "linear": ("linear1", "linear2"),
    "attention": ("self_attn",),
    "layers": ("",),
    "dropout": ("dropout1",),
}


@pytest.mark.parametrize("first", ["training", "evaluation"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("parts", PARTS)
def test_the_encoders_of_torch_are_erased(parts, padded, first):
    model: Any = encoder()
    x, mask = torch.randn(2, 5, WIDTH), torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    sites = [f"layers.{i}.{part}".strip(".") for i in (0, 1) for part in PARTS[parts]]
    widths = {"linear1": 32}
    scrubber = Scrubber({s: eraser_of(s, 2, widths.get(s.split(".")[-1], WIDTH)) for s in sites})
    with scrubber.attached(model):
        wanted = model.train()(x, src_key_padding_mask=mask) if first == "training" else None
        with torch.no_grad():
            erased = model.eval()(x, src_key_padding_mask=mask)
        if wanted is not None:
            kept = slice(None) if mask is None else ~mask
            torch.testing.assert_close(erased[kept], wanted[kept])
    with torch.no_grad():
        clean = model(x, src_key_padding_mask=mask)
    if clean.shape == erased.shape:
        assert not torch.allclose(clean, erased)
    assert model.use_nested_tensor and model.layers[0].activation_relu_or_gelu == 1


def test_weights_of_attention_that_no_module_multiplies():
    model = encoder().train()
    with (
        pytest.raises(RuntimeError, match="without being erased at 'layers.0.self_attn.out_proj'.*a fused kernel"),
        Scrubber({"layers.0.self_attn.out_proj": eraser_of("o", 2, WIDTH)}).attached(model),
    ):
        model(torch.randn(2, 5, WIDTH))


# -------------------------------------------------------------------- forwards that libraries replace


def faster(self: nn.LayerNorm, x: Tensor) -> Tensor:
    """What a library makes of the norm: another function, which tests tell from the old one."""
    return 2 * torch.nn.functional.layer_norm(x, (8,), self.weight, self.bias)


@pytest.mark.parametrize("fuse", [False, True], ids=["hooked", "fused"])
@pytest.mark.parametrize("when", ["between", "while attached"])
def test_a_class_whose_forward_is_replaced(monkeypatch, fuse, when):
    class Norm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model, x = Block(), torch.randn(5, 8)
    model.norm = Norm(8)
    eraser = eraser_of("norm", 2, 8)
    scrubber = Scrubber({"norm": eraser})
    with scrubber.attached(model, fuse=fuse):
        before = model.norm(x)
        if when == "while attached":
            monkeypatch.setattr(Norm, "forward", faster)
            torch.testing.assert_close(model.norm(x), eraser(faster(model.norm, x)))
    monkeypatch.setattr(Norm, "forward", faster)
    with pytest.warns(UserWarning, match="cannot be fused") if fuse else scrubber.attached(model):
        if fuse:
            scrubber.attach_(model, fuse=True)
        erased = model.norm(x)
        torch.testing.assert_close(erased, eraser(faster(model.norm, x)))
        assert not torch.allclose(erased, before)


@pytest.mark.parametrize("again", [False, True])
def test_a_forward_that_was_kept_and_is_called_after_the_end(again):
    model: Any = Block()
    x = torch.randn(5, 8)
    clean, scrubber = model(x), Scrubber({"norm": eraser_of("norm", 2, 8)})
    scrubber.attach_(model)
    for module in (model, model.norm):
        module.forward = lambda *args, kept=module.forward: kept(*args)
    wanted = model(x)
    scrubber.detach_(model)
    assert torch.equal(model(x), clean) and not torch.equal(clean, wanted)
    if again:
        with scrubber.attached(model):
            assert torch.allclose(model(x), wanted)
        assert torch.equal(model(x), clean)


# -------------------------------------------------------------------- layers that are computed again


class Recomputing(nn.Module):
    """A block that a backward pass computes again."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head, self.reentrant = Block(), nn.Linear(8, 8), reentrant

    def forward(self, x: Tensor) -> Any:
        return {"out": [self.head(checkpoint(self.block, x, use_reentrant=self.reentrant))]}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("when", ["inside", "after the end", "attached between"])
def test_a_backward_pass_that_computes_layers_again(reentrant, when):
    model: Any = Recomputing(reentrant)
    x: Any = torch.randn(5, 8, requires_grad=True)
    scrubber = Scrubber({"block.norm": eraser_of("norm", 2, 8)})
    if when == "attached between":
        loss = model(x)["out"][0].square().sum()
        with pytest.raises(RuntimeError), scrubber.attached(model):
            loss.backward()
        return
    scrubber.attach_(model)
    loss = model(x)["out"][0].square().sum()
    if when == "inside":
        loss.backward()
        got = x.grad.clone()
        x.grad = None
        scrubber.detach_(model)
        model.forward = lambda x: {"out": [model.head(model.block(x))]}
        with scrubber.attached(model):
            model(x)["out"][0].square().sum().backward()
        torch.testing.assert_close(got, x.grad)
    else:
        scrubber.detach_(model)
        with pytest.raises(RuntimeError, match="have been detached: call backward|different number of tensors"):
            loss.backward()


def by_the_model(model: Any, x: Tensor) -> Tensor:
    return model(x)["out"][0]


def layers_alone(model: Any, x: Tensor) -> Tensor:
    return model.head(checkpoint(model.block, x, use_reentrant=True))


def site_alone(model: Any, x: Tensor) -> Tensor:
    return model.block.linear(checkpoint(model.block.norm, x, use_reentrant=True))


def layers_inside_others(model: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda x: layers_alone(model, x), x, use_reentrant=True)


def kept_aside(model: Any, x: Tensor) -> Tensor:
    kept = []
    model.head.register_forward_hook(lambda module, args, output: kept.append(output))
    model(x)["out"][0] = None
    return kept[0]


class Again(torch.autograd.Function):
    """Checkpointing that is not torch's."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.run = run
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.run(x).backward(gradient)
        return None, x.grad


def of_another_library(model: Any, x: Tensor) -> Any:
    return Again.apply(model.block, x)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(
    "way", [by_the_model, layers_alone, site_alone, layers_inside_others, kept_aside, of_another_library]
)
def test_layers_are_computed_again_as_they_were_or_not_at_all(way, fuse):
    model: Any = Recomputing(True)
    x: Any = torch.randn(5, 8, requires_grad=True)
    scrubber, other = (Scrubber({"block.norm": eraser_of("norm", 2 + seed, 8)}) for seed in range(2))
    with scrubber.attached(model, fuse=fuse):
        way(model, x).square().sum().backward()  # inside: nothing is refused
        loss, kept, nested = (way(model, x).square().sum() for _ in range(3))
        with pytest.raises(RuntimeError, match="ran before erasers were attached"), other.attached(model):
            nested.backward()
    with pytest.raises(RuntimeError, match="have been detached: call backward"):
        loss.backward()
    with scrubber.attached(model, fuse=fuse), pytest.raises(RuntimeError, match="have been detached: call backward"):
        kept.backward()
    clean = way(model, x).square().sum()
    with scrubber.attached(model, fuse=fuse):
        with torch.no_grad():
            way(model, x)
        with pytest.raises(RuntimeError, match="ran before erasers were attached"):
            clean.backward()


def test_passes_without_gradients_leave_nothing_to_a_backward_pass():
    model: Any = Recomputing(True)
    x: Any = torch.randn(5, 8, requires_grad=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with Scrubber({"block.norm": eraser_of("norm", 2, 8)}).attached(model), mode():
            model(x)
    model(x)["out"][0].sum().backward()
    assert x.grad is not None


def test_gradients_after_the_end_are_right_where_nothing_is_computed_again():
    model = Block()
    x: Any = torch.randn(5, 8, requires_grad=True)
    gradients = []
    for inside in (True, False):
        x.grad = None
        with Scrubber({"norm": eraser_of("norm", 2, 8)}).attached(model):
            loss = model(x).square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        got: Any = x.grad
        gradients.append(got.clone())
    assert torch.equal(*gradients)


# -------------------------------------------------------------------- threads, modes


def test_threads_that_run_a_model_at_the_same_time():
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    scrubber = scrubber_of(model, batch)
    wrong: list[Any] = []

    def run() -> None:
        try:
            for _ in range(60):
                if not torch.equal(outputs_of(model, batch), wanted):
                    wrong.append("other bits")
        except Exception as error:
            wrong.append(error)

    with scrubber.attached(model):
        wanted = outputs_of(model, batch)
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        model.get_submodule(FIRST).__class__ = type(model.get_submodule(FIRST)).__mro__[1]
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wrong) == 4 and all(isinstance(error, RuntimeError) for error in wrong)


MODES: dict[str, Callable[[], Any]] = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "t5", "albert", "mixtral"])
def test_modes_of_torch(name, mode):
    model, batch = tiny_models.build(name), tiny_models.batch(name)
    shared = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.LayerNorm"  # runs twice in a pass
    scrubber = Scrubber({shared: eraser_of(shared)}) if name == "albert" else scrubber_of(model, batch)
    with scrubber.attached(model):
        wanted = model(**batch)[0].detach()
        with MODES[mode]():
            torch.testing.assert_close(model(**batch)[0], wanted)
