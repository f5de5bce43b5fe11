"""Models with erasers that are pickled: what is loaded is erased to the bit, or it could not be saved."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from scrubbed_models import FIRST, eraser_of, outputs_of, scrubber_of
from tiny_models import Block
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from leace_fast import Eraser, Scrubber, fold_, unfold_
from leace_fast.attaching._fused_norms import FusedNorm, find_formula
from leace_fast.models import tap

IN_A_FRESH_PROCESS = """
import sys, torch
folder, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
batch = torch.load(f"{folder}/batch")
for name in "attached", "fused", "folded":
    model = torch.load(f"{folder}/{name}", weights_only=False)
    with torch.no_grad():
        torch.save(model(**batch)[0], f"{folder}/{name}.output")
"""


def through_torch(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "oldest": lambda model: pickle.loads(pickle.dumps(model, 0)),
    "newest": lambda model: pickle.loads(pickle.dumps(model, pickle.HIGHEST_PROTOCOL)),
    "torch": through_torch,
    "deep copy": copy.deepcopy,
}


@pytest.fixture
def llama() -> tuple[Any, dict[str, Tensor], Scrubber]:
    """In bfloat16, as it is served."""
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    return model.bfloat16(), batch, scrubber_of(model, batch).to(torch.float32)


@pytest.fixture
def block() -> tuple[Any, Tensor, Scrubber]:
    torch.manual_seed(0)
    return Block().eval(), torch.randn(5, 8), Scrubber({"norm": eraser_of("norm", 2, 8)})


# ---------------------------------------------------------------------- what is loaded is erased


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A folder with what models give that were loaded in a fresh process, and what they gave when they were saved."""
    folder, wanted = tmp_path_factory.mktemp("models"), {}
    batch = tiny_models.batch("llama")
    torch.save(batch, folder / "batch")
    for name in "attached", "fused", "folded":
        model = tiny_models.build("llama")
        scrubber = scrubber_of(model, batch)
        clean = outputs_of(model, batch)
        if name == "folded":
            scrubber.fold_(model, batch, add_bias=True)
        else:
            scrubber.attach_(model, fuse=name == "fused")
        wanted[name] = outputs_of(model, batch)
        assert not torch.equal(wanted[name], clean)
        torch.save(model, folder / name)
    run = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(folder), str(torch.get_num_threads())]
    subprocess.run(run, check=True)
    return folder, wanted


@pytest.mark.parametrize("name", ["attached", "fused", "folded"])
def test_in_a_fresh_process(fresh, name):
    folder, wanted = fresh
    assert torch.equal(torch.load(folder / f"{name}.output"), wanted[name])


@pytest.mark.parametrize("fuse", [False, True], ids=["hooked", "fused"])
@pytest.mark.parametrize("way", WAYS)
def test_the_ways_of_pickling(llama, way, fuse):
    model, batch, scrubber = llama
    clean = outputs_of(model, batch)
    with scrubber.attached(model, fuse=fuse):
        wanted = outputs_of(model, batch)
        loaded = WAYS[way](model)
        assert torch.equal(outputs_of(model, batch), wanted)
    assert torch.equal(outputs_of(model, batch), clean) and not torch.equal(wanted, clean)
    assert torch.equal(outputs_of(loaded, batch), wanted)
    norm = loaded.get_submodule(FIRST)
    assert norm.weight.dtype == torch.bfloat16 and norm._erasure.eraser.dtype == torch.float32
    assert isinstance(norm, type(model.get_submodule(FIRST)))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    again = WAYS[way](loaded)
    assert torch.equal(outputs_of(again, batch), wanted)


def in_another_process(rank: int, model: nn.Module, x: Tensor, output: Tensor) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        output.copy_(model(x))


@pytest.mark.parametrize("fuse", [False, True], ids=["hooked", "fused"])
def test_what_another_process_gets(block, fuse):
    model, x, scrubber = block
    output = torch.zeros_like(x).share_memory_()
    with scrubber.attached(model, fuse=fuse), torch.no_grad():
        wanted = model(x)
        spawn(in_another_process, (model, x, output))
    assert torch.equal(output, wanted) and not torch.equal(wanted, model(x))


def test_a_part_of_a_model(llama):
    model, _, scrubber = llama
    x = torch.randn(3, tiny_models.WIDTH).bfloat16()
    with scrubber.attached(model):
        wanted = model.get_submodule(FIRST)(x)
        loaded = through_torch(model.get_submodule(FIRST))
    assert torch.equal(loaded(x), wanted) and not torch.equal(model.get_submodule(FIRST)(x), wanted)


def test_a_model_that_is_its_own_site(block):
    norm, x = block[0].norm, block[1]
    with Scrubber({"": eraser_of("norm", 2, 8)}).attached(norm):
        wanted = norm(x)
        assert all(torch.equal(way(norm)(x), wanted) for way in WAYS.values())


@pytest.mark.parametrize("when", ["wrapped", "in place", "of what was loaded"])
def test_compiled_models(block, when):
    model, x, scrubber = block
    with scrubber.attached(model, fuse=True), torch.no_grad():
        wanted = model(x)
        saved = torch.compile(model, backend="eager") if when == "wrapped" else model
        if when == "in place":
            model.compile(backend="eager")
        saved(x)
        loaded = through_torch(saved)
    if when == "of what was loaded":
        loaded = torch.compile(loaded, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), wanted)


def test_what_is_kept_for_a_device_is_left_behind():
    eraser, x = eraser_of("site", 2, 8), torch.ones(1, 8)
    fused = FusedNorm(find_formula(nn.LayerNorm(8), 8), eraser)
    before = pickle.dumps(fused)
    fused(nn.LayerNorm(8), x)
    eraser(x)
    assert pickle.dumps(fused) == before


def test_folded_models_do_not_know_their_weights(llama):
    model, batch, _ = llama
    fold_(model, {FIRST: Eraser(torch.eye(16)[:, :1], torch.eye(16)[:1])}, batch)
    loaded = through_torch(model)
    assert torch.equal(outputs_of(loaded, batch), outputs_of(model, batch))
    with pytest.raises(ValueError, match="a loaded model does not know its original weights"):
        unfold_(loaded)


# ---------------------------------------------------------------------- and keeps watch


@pytest.mark.parametrize("lost", ["module", "eraser"])
def test_what_was_loaded_keeps_watch(block, lost):
    model, x, scrubber = block
    with scrubber.attached(model):
        model(x)
        loaded = through_torch(model)
    if lost == "module":
        loaded.norm = copy.deepcopy(model.norm)
    else:
        loaded.norm.__class__ = nn.LayerNorm
    with pytest.raises(RuntimeError, match="without being erased at 'norm'"):
        loaded(x)


def test_the_hook_that_watches_keeps_its_number(block, monkeypatch):
    model, _, scrubber = block
    with scrubber.attached(model):
        data, (number,) = pickle.dumps(model), model._forward_hooks
    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "next_id", number)  # a fresh process counts anew
    loaded = pickle.loads(data)
    loaded.register_forward_hook(lambda module, args, output: None)
    assert len(loaded._forward_hooks) == 2


def test_a_scrubber_and_its_model(llama):
    model, batch, scrubber = llama
    with scrubber.attached(model):
        wanted = outputs_of(model, batch)
        twin, loaded = pickle.loads(pickle.dumps((scrubber, model)))
    assert torch.equal(outputs_of(loaded, batch), wanted)
    with pytest.raises(ValueError, match="in a loaded model cannot be detached: load its state_dict"):
        twin.detach_(loaded)
    renewed = tiny_models.build("llama").bfloat16()
    renewed.load_state_dict(loaded.state_dict())
    assert torch.equal(outputs_of(renewed, batch), outputs_of(model, batch))


# ---------------------------------------------------------------------- what cannot be pickled


HOOKED: dict[str, Callable[..., Any]] = {
    "tap": lambda model, scrubber: tap(model, [FIRST], lambda name, output: None),
    "second scrubber": lambda model, scrubber: Scrubber(dict(scrubber)).attached(model),
}


@pytest.mark.parametrize("name", HOOKED)
def test_what_acts_by_a_hook_is_not_pickled(llama, name):
    model, batch, scrubber = llama
    with scrubber.attached(model):
        wanted = outputs_of(model, batch)
        with HOOKED[name](model, scrubber):
            for way in ("oldest", "newest", "torch"):
                with pytest.raises(TypeError, match="attached by hooks, which cannot be pickled: leave their `with`"):
                    WAYS[way](model)
            twin = copy.deepcopy(model)
        assert torch.equal(outputs_of(through_torch(model), batch), wanted)
    with pytest.raises(TypeError, match="attached by hooks"):
        pickle.dumps(twin)
    assert torch.equal(outputs_of(through_torch(model), batch), outputs_of(model, batch))


@pytest.mark.parametrize("way", WAYS)
def test_a_module_that_is_copied_in_its_own_way(block, way):
    model, x, scrubber = block
    model.norm = torch.fx.symbolic_trace(model.norm)  # what its copies are made of knows of no eraser
    with scrubber.attached(model):
        for part in (model, model.norm):
            with pytest.raises(TypeError, match="its own way of being copied or pickled.*detach them first"):
                WAYS[way](part)
    assert torch.equal(WAYS[way](model)(x), model(x))


class Forgetful(nn.LayerNorm):
    """Keeps what it knows of alone."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: part for name, part in vars(self).items() if name != "_erasure"}


@pytest.mark.parametrize("way", WAYS)
def test_a_module_that_loses_its_eraser_does_not_run(block, way):
    model, x, scrubber = block
    model.norm = Forgetful(8)
    with scrubber.attached(model):
        loaded = WAYS[way](model)
    with pytest.raises(AttributeError, match="_erasure"):
        loaded.norm(x)


@pytest.mark.parametrize("below", [True, False])
def test_types_of_another_library(block, below):
    model, x, scrubber = block
    if below:
        nn.utils.parametrize.register_parametrization(model.norm, "weight", nn.Identity())
    with scrubber.attached(model):
        if not below:
            nn.utils.parametrize.register_parametrization(model.norm, "weight", nn.Identity())
        wanted = model(x)
        assert torch.equal(copy.deepcopy(model)(x), wanted)
        with pytest.raises(RuntimeError, match="parametrized modules"):
            pickle.dumps(model)
