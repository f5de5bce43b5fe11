"""Whatever happens after erasers were attached, and after passes that were right: erased, or an error that says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scrubbed_models import eraser_of
from tiny_models import Block
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from leace_fast import Scrubber
from leace_fast.models import tap

WIDTH = 8


class Net(nn.Module):
    """Two blocks, a norm and a head; `way` is how it reads the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.way = "called"

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.way == "called":
            x = self.norm(x)
        elif self.way == "functional":
            x = F.layer_norm(x, (WIDTH,), self.norm.weight, self.norm.bias)
        elif self.way == "of the class":
            x = nn.LayerNorm.forward(self.norm, x)
        return F.linear(x, self.head.weight) if self.way == "head" else self.head(x)


SITES = ("blocks.0.norm", "blocks.1.norm", "norm", "head")


@pytest.fixture(params=[False, True], ids=["typed", "hooked"])
def attached(request) -> Any:
    """A model with erasers, which has run once; at one site, or by hooks where something acts there already."""
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(5, WIDTH)
    scrubber = Scrubber({site: eraser_of(site, 2, WIDTH) for site in SITES})
    if request.param:
        with tap(model, SITES, lambda name, output: None):
            scrubber.attach_(model)
    else:
        scrubber.attach_(model)
    wanted = model(x)
    return model, x, scrubber, wanted


def patched(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = forward.__get__(module)


class Lora(nn.Module):
    """Adds what no eraser has seen."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.delta = base, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.delta(x)


def cleared(model: nn.Module) -> None:
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()


def retyped(module: nn.Module, kind: type[nn.Module]) -> None:
    cleared(module)
    module.__class__ = kind


ROUND: dict[str, Callable[[Any], Any]] = {
    "weights of a norm, functionally": lambda m: setattr(m, "way", "functional"),
    "weights of a head, functionally": lambda m: setattr(m, "way", "head"),
    "left out": lambda m: setattr(m, "way", "nothing"),
    "forward of the class": lambda m: setattr(m, "way", "of the class"),
    "type set back": lambda m: retyped(m.norm, nn.LayerNorm),
    "type set back in a block": lambda m: retyped(m.blocks[1].norm, nn.LayerNorm),
    "forward of a site": lambda m: patched(m.norm, nn.LayerNorm.forward),
    "forward of the model": lambda m: patched(m, lambda self, x: F.linear(x, self.head.weight)),
    "forward of a block": lambda m: patched(m.blocks[0], lambda self, x: x + self.linear(x)),
    "site replaced": lambda m: setattr(m, "norm", nn.LayerNorm(WIDTH)),
    "site replaced in a block": lambda m: setattr(m.blocks[1], "norm", nn.LayerNorm(WIDTH)),
    "site made None": lambda m: (setattr(m, "norm", None), setattr(m, "way", "nothing")),
    "block replaced": lambda m: m.blocks.__setitem__(1, Block()),
    "list replaced": lambda m: setattr(m, "blocks", nn.ModuleList([Block(), Block()])),
    "list cut short": lambda m: setattr(m, "blocks", m.blocks[:1]),
    "adapter round a site": lambda m: setattr(m, "head", Lora(m.head)),
    "adapter round a norm of a block": lambda m: setattr(m.blocks[0], "norm", Lora(m.blocks[0].norm)),
    "sites exchanged": lambda m: (setattr(m, "kept", m.norm), setattr(m, "norm", m.blocks[0].norm)),
}


@pytest.mark.parametrize("name", ROUND)
def test_a_later_pass_that_goes_round_raises_each_time(attached, name):
    model, x, scrubber, wanted = attached
    hooked = bool(model.norm._forward_hooks)
    ROUND[name](model)
    if hooked and name == "forward of a site":  # after which the hook erases
        torch.testing.assert_close(model(x), wanted)
        return
    for _ in range(2):
        with pytest.raises(RuntimeError, match="without being erased at '"):
            model(x)
    scrubber.detach_(model)


def test_hooks_that_are_cleared(attached):
    model, x, _, wanted = attached
    hooked = bool(model.norm._forward_hooks)
    cleared(model)
    if hooked:
        with pytest.raises(RuntimeError, match="or its hooks are gone: detach the erasers and attach them again"):
            model(x)
    else:
        assert torch.equal(model(x), wanted)
        model.blocks[1] = Block()
        with pytest.raises(RuntimeError, match="'blocks.1.norm': another module has taken the place"):
            model(x)


HARMLESS: dict[str, Callable[[Any], Any]] = {
    "moved": lambda m: m.double().float(),
    "weights loaded": lambda m: m.load_state_dict(copy.deepcopy(m.state_dict())),
    "frozen": lambda m: m.requires_grad_(False),
    "checkpoint round a block": lambda m: m.blocks.__setitem__(0, checkpoint_wrapper(m.blocks[0])),
    "checkpoint round a site": lambda m: setattr(m, "head", checkpoint_wrapper(m.head)),
    "parametrised": lambda m: nn.utils.parametrize.register_parametrization(m.head, "weight", nn.Identity()),
    "types of a library": lambda m: [setattr(e, "__class__", type("Sharded", (type(e),), {})) for e in m.modules()],
    "forward kept and wrapped": lambda m: [setattr(e, "forward", lambda *a, f=e.forward: f(*a)) for e in m.modules()],
    "a hook of another": lambda m: m.norm.register_forward_hook(lambda module, args, output: None),
    "data parallel": lambda m: None,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_runs_erased(attached, name):
    model, x, scrubber, wanted = attached
    HARMLESS[name](model)
    run = nn.DataParallel(model) if name == "data parallel" else model
    for _ in range(2):
        torch.testing.assert_close(run(x), wanted)
    scrubber.detach_(model)
    assert not torch.allclose(run(x), wanted)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
def test_traces_and_quantised_copies_are_erased(attached):
    model, x, _, wanted = attached
    traced = torch.fx.symbolic_trace(model)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    eraser = eraser_of("head", 2, WIDTH)
    for made in (traced, quantised):
        try:
            rows = made(x)
        except RuntimeError:  # of copies that hooks erase
            assert made is quantised and model.norm._forward_hooks
            continue
        assert ((rows - eraser.mean) @ eraser.right.mT).abs().max() < 1e-5
    torch.testing.assert_close(traced(x), wanted)
    model.norm = nn.LayerNorm(WIDTH)
    with pytest.raises(RuntimeError, match="'norm': another module has taken the place"):
        torch.fx.symbolic_trace(model)


# ----------------------------------------------------------------------------- what a pass may leave out


class Experts(nn.Module):
    """Rows go to the expert of their sign."""

    def __init__(self, expert: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList([expert(), expert(), expert()])

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i, rows in enumerate((x[:, 0] > 0, x[:, 0] < 0, x[:, 0] == 0)):
            if rows.any():
                out[rows] = self.experts[i](x[rows])
        return out


class Deep(nn.Module):
    """An encoder that runs when it is given something, blocks that are left out, and a part used by a method."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.trunk = Block(), nn.Sequential(Block(), Block(), Block())
        self.depth, self.kept = 3, torch.zeros(WIDTH)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        if given is not None:
            self.kept = self.encoder(given)
        for block in list(self.trunk)[: self.depth]:  # the forward of what holds them is never called
            x = block(x + self.kept)
        return x


@pytest.mark.parametrize("expert", [Block, lambda: nn.Linear(WIDTH, WIDTH)], ids=["block", "linear"])
@pytest.mark.parametrize("sites", [(0, 1, 2), (0,)], ids=["all", "one"])
def test_experts_without_tokens(expert, sites):
    torch.manual_seed(0)
    model, x = Experts(expert).eval(), torch.randn(6, WIDTH)
    names = [f"experts.{i}.norm" if expert is Block else f"experts.{i}" for i in sites]
    scrubber = Scrubber({site: eraser_of(site, 2, WIDTH) for site in names})
    with torch.no_grad(), scrubber.attached(model):
        wanted = model(x)  # no row is zero: the third expert has none
        assert torch.equal(model(x), wanted) and not torch.equal(model(x.abs()), model(-x.abs()))
        for rows in (x.abs(), -x.abs(), x):
            model(rows)
        model.experts[0] = expert()
        with pytest.raises(RuntimeError, match=f"{names[0]}.*has taken the place"):
            model(x)


def test_lists_of_which_a_later_pass_calls_no_item():
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])

        def forward(self, x: Tensor) -> Tensor:
            layer: Any
            for layer in self.layers:
                x = layer(x) if self.training else F.linear(x, layer.weight, layer.bias)
            return x

    model, x = Stack().train(), torch.randn(3, WIDTH)
    with Scrubber({f"layers.{i}": eraser_of(f"{i}", 2, WIDTH) for i in (0, 1)}).attached(model):
        model(x)
        with pytest.raises(RuntimeError, match="without being erased at 'layers.0'"):
            model.eval()(x)
        model.train()(x)


def test_stages_and_layers_that_are_left_out():
    torch.manual_seed(0)
    model: Any = Deep().eval()
    x, sites = torch.randn(5, WIDTH), ["encoder.norm", "trunk.0.norm", "trunk.1.norm", "trunk.2.norm"]
    scrubber = Scrubber({site: eraser_of(site, 2, WIDTH) for site in sites})
    with torch.no_grad(), scrubber.attached(model):
        with pytest.raises(RuntimeError, match="without being erased at 'encoder.norm': this forward pass does not"):
            model(x)  # has never run
        wanted = model(x, x)
        assert torch.equal(model(x), wanted)  # as `generate`
        model.depth = 2  # an early exit
        model(x)
        model.depth, model.trunk[0].norm = 3, nn.LayerNorm(WIDTH)
        with pytest.raises(RuntimeError, match="without being erased at 'trunk.0.norm'"):
            model(x)


def test_a_part_of_the_model_that_is_called_alone():
    model, x = Deep().eval(), torch.randn(5, WIDTH)
    with torch.no_grad(), Scrubber({"encoder.norm": eraser_of("norm", 2, WIDTH)}).attached(model):
        wanted = model.encoder(x)
        model(x)  # the encoder has run
        assert torch.equal(model.encoder(x), wanted)
        model.encoder.norm = nn.LayerNorm(WIDTH)
        with pytest.raises(RuntimeError, match="without being erased at 'encoder.norm'"):
            model.encoder(x)


class Halting(Block):
    """Fails half-way when told to; has its layers twice in a pass."""

    fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(super().forward(x))
        if self.fails:
            raise KeyError("half-way")
        return x if self.training else x + F.layer_norm(x, (WIDTH,))


def test_a_pass_that_failed_half_way_is_forgotten():
    model: Any = nn.Sequential(Block(), Halting()).train()
    x = torch.randn(5, WIDTH)
    scrubber = Scrubber({site: eraser_of(site, 2, WIDTH) for site in ("0.norm", "1.norm")})
    with scrubber.attached(model):
        wanted = model(x)
        for broken in (False, True):
            model[1].fails = True
            with pytest.raises(KeyError, match="half-way"):
                model(x)
            model[1].fails = False
            if broken:
                model[0] = Block()
                for _ in range(2):
                    with pytest.raises(RuntimeError, match="without being erased at '0.norm'"):
                        model(x)
            else:
                assert torch.equal(model(x), wanted)


def test_scrubbers_that_come_and_go_in_any_order():
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(5, WIDTH)
    clean = model(x)
    one, two = Scrubber({"norm": eraser_of("a", 2, WIDTH)}), Scrubber({"blocks.1.norm": eraser_of("b", 2, WIDTH)})
    for first, second, site in ((one, two, "norm"), (two, one, "blocks.1.norm")):
        one.attach_(model)
        two.attach_(model)
        both = model(x)
        first.detach_(model)
        assert not torch.equal(model(x), both) and not torch.equal(model(x), clean)
        with pytest.raises(ValueError, match="not attached"):
            first.detach_(model)
        model.get_submodule(next(iter(second))).__class__ = nn.LayerNorm
        with pytest.raises(RuntimeError, match="without being erased"):
            model(x)
        second.detach_(model)
        assert torch.equal(model(x), clean)
        assert all("_watch" not in vars(m) and type(m).__mro__[1] is not type(m) for m in model.modules()), site
