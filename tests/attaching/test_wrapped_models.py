"""Models in wrappers, with adapters and without weights: a scrubber of either attaches to the other, or is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import FIRST, LAST, eraser_of, outputs_of, scrubber_of
from tiny_models import Block
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from wrapped import WRAPPERS

from leace_fast import Scrubber

PREFIXES = {"data parallel": "module.", "compiled": "_orig_mod.", "both": "module._orig_mod."}


@pytest.fixture
def llama() -> tuple[Any, dict[str, Tensor], Scrubber]:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    return model, batch, scrubber_of(model, batch)


def renamed(scrubber: Scrubber, prefix: str) -> Scrubber:
    return Scrubber({prefix + site: eraser for site, eraser in scrubber.items()})


@pytest.mark.parametrize("prefixed", [False, True], ids=["fitted bare", "fitted on the wrapper"])
@pytest.mark.parametrize("on", ["the wrapper", "the model inside"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_and_the_model_inside(llama, name, on, prefixed):
    model, batch, scrubber = llama
    with scrubber.attached(model):
        wanted = outputs_of(model, batch)
    wrapped = WRAPPERS[name](model)
    scrubber = renamed(scrubber, PREFIXES[name]) if prefixed else scrubber
    scrubber.attach_(wrapped if on == "the wrapper" else model)
    with pytest.raises(ValueError, match="attached to this model already"):
        scrubber.attach_(model if on == "the wrapper" else wrapped)
    for run in (model, wrapped):
        torch.testing.assert_close(outputs_of(run, batch), wanted)
    scrubber.verify(model, wrapped, batch)
    scrubber.detach_(model if on == "the wrapper" else wrapped)  # either is the same model
    for run in (model, wrapped):
        assert not torch.allclose(outputs_of(run, batch), wanted)


@pytest.fixture
def gloo(tmp_path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("gloo")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_distributed_models(kind, when):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    x, sites = torch.randn(5, 8), ("0.norm", "1.norm")
    scrubber = Scrubber({site: eraser_of(site, 2, 8) for site in sites})
    model: Any = nn.Sequential(Block(), Block())

    def wrap(model: Any) -> Any:
        if kind == "DDP":
            return nn.parallel.DistributedDataParallel(model)
        for module in (*model, model):
            fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        return model

    with scrubber.attached(model):
        wanted = model(x)
    run = wrap(model) if when == "before" else model
    scrubber.attach_(run)
    run = wrap(model) if when == "after" else run
    torch.testing.assert_close(run(x), wanted)
    run(x).square().sum().backward()
    scrubber.detach_(run)
    assert not torch.allclose(run(x), wanted)


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, WRAPPERS["compiled"]], ids=["checkpoint", "compiled"])
def test_layers_in_wrappers(llama, wrap):
    model, batch, scrubber = llama
    with scrubber.attached(model):
        wanted = outputs_of(model, batch)
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = wrap(layer)
    inside = Scrubber({name: scrubber[site] for site, name in _names(model, scrubber).items()})
    for each in (scrubber, inside):
        with each.attached(model):
            torch.testing.assert_close(outputs_of(model, batch), wanted)
    assert set(inside).isdisjoint(scrubber)
    with inside.attached(tiny_models.build("llama")) as bare:
        torch.testing.assert_close(outputs_of(bare, batch), wanted)


def _names(model: nn.Module, sites: Any) -> dict[str, str]:
    """Names that sites have in a model whose layers are wrapped."""
    parts = ("_orig_mod", "_checkpoint_wrapped_module")
    names = {".".join(p for p in n.split(".") if p not in parts): n for n, _ in model.named_modules()}
    return {site: names[site] for site in sites}


# --------------------------------------------------------------------------------- adapters


def adapted(model: nn.Module, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, peft.LoraConfig(r=2, **options)).eval()


def shaken(model: Any, part: str) -> Any:
    """With other weights in the adapter than it starts with."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data.add_(0.5 * torch.randn_like(parameter))
    return model


SWITCHES: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda model: None,
    "off": lambda model: model.base_model.disable_adapter_layers(),
    "another": lambda model: (model.add_adapter("two", model.peft_config["default"]), model.set_adapter("two")),
    "merged": lambda model: model.merge_adapter(),
}
PREFIX = "base_model.model."


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("fitted", ["bare", "wrapper", "copy"])
@pytest.mark.filterwarnings("ignore")
def test_copies_that_an_adapter_keeps_are_all_erased(switch, fitted):
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    model = shaken(adapted(model, target_modules=["q_proj"], modules_to_save=["input_layernorm"]), "lora_B")
    name = {"bare": FIRST, "wrapper": PREFIX + FIRST, "copy": f"{PREFIX}{FIRST}.modules_to_save.default"}[fitted]
    eraser = eraser_of(FIRST)
    mean: Any = eraser.mean
    SWITCHES[switch](model)
    seen: list[Tensor] = []
    place = model.get_submodule(PREFIX + FIRST)
    with Scrubber({name: eraser}).attached(model):
        handle = place.register_forward_hook(lambda module, args, output: seen.append(output))
        outputs_of(model, batch)
        for other in ("off", "as it is"):
            SWITCHES[other](model)
            outputs_of(model, batch)
        handle.remove()
    assert len(seen) == 3
    for rows in seen:
        assert ((rows - mean) @ eraser.right.mT).abs().max() < 1e-6


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.filterwarnings("ignore")
def test_sites_with_low_rank_adapters(switch):
    site = "model.layers.0.mlp.down_proj"
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    model, eraser = shaken(adapted(model, target_modules=["down_proj"]), "lora_B"), eraser_of(site)
    mean: Any = eraser.mean
    seen: list[Tensor] = []
    with Scrubber({site: eraser}).attached(model):
        SWITCHES[switch](model)
        model.get_submodule(PREFIX + site).register_forward_hook(lambda module, args, output: seen.append(output))
        outputs_of(model, batch)
    assert ((seen[0] - mean) @ eraser.right.mT).abs().max() < 1e-6


@pytest.mark.parametrize("options", [{"target_modules": ["down_proj"]}, {"target_modules": ["q_proj"]}])
def test_an_adapter_that_comes_after_the_erasers(options):
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    scrubber = Scrubber({site: eraser_of(site) for site in (FIRST, LAST, "model.layers.0.mlp.down_proj")})
    scrubber.attach_(model)
    outputs_of(model, batch)
    wrapped = shaken(adapted(model, **options), "lora_B")
    if options["target_modules"] == ["down_proj"]:
        with pytest.raises(RuntimeError, match=r"'model.layers.0.mlp.down_proj': another module has taken the place"):
            outputs_of(wrapped, batch)
        scrubber.detach_(wrapped)
        scrubber.attach_(wrapped)
    erased = outputs_of(wrapped, batch)
    scrubber.detach_(model)
    assert not torch.allclose(outputs_of(wrapped, batch), erased)


# --------------------------------------------------------------------------------- refused


def test_one_place_of_two_names_is_refused(llama):
    model, _, scrubber = llama
    both = Scrubber({**scrubber, f"module.{FIRST}": scrubber[FIRST]})
    with pytest.raises(ValueError, match="are one module here"), both.attached(model):
        raise AssertionError("the block must not run")


def test_weights_that_were_never_loaded(llama):
    _, _, scrubber = llama
    with torch.device("meta"):
        empty = tiny_models.build("llama")
    with pytest.raises(ValueError, match="on the device meta, without numbers.*load its weights first"):
        scrubber.attach_(empty)
    partly = tiny_models.build("llama")
    partly.model.layers[0].mlp.down_proj.to("meta")
    with pytest.raises(ValueError, match="layers.0.mlp.down_proj.weight.*on the device meta"):
        scrubber.attach_(partly)
    assert not any("_watch" in vars(module) for module in partly.modules())
