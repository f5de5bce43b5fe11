"""What wraps a model changes nothing: the model inside runs, and the names are those of what was given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from labelled_models import CLASSES, labelled_batches
from torch import Tensor, nn

from leace_fast import evaluate, find_sites, fold_, fold_residual_, record, scrub, unfold_
from leace_fast.folding import export_lora
from leace_fast.models import Inside
from leace_fast.study import run_study


def adapted(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    return wrapped.double().eval()  # an adapter of zeros: the same model


WRAPPERS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "data parallel": (nn.DataParallel, "module."),
    "compiled": (lambda model: torch.compile(model, backend="eager"), "_orig_mod."),
    "compiled in data parallel": (
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),  # type: ignore[arg-type]
        "module._orig_mod.",
    ),
    "adapters": (adapted, "base_model.model."),
}


@pytest.fixture(params=WRAPPERS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, str]:
    """A model, the same one wrapped, and what its names begin with there."""
    wrap, prefix = WRAPPERS[request.param]
    model = tiny_models.build("llama")
    return model, wrap(copy.deepcopy(model)), prefix


BATCHES = labelled_batches("llama", 4)


def held_out() -> list[dict[str, Tensor]]:
    return [{**b, "input_ids": (b["input_ids"] + 5).clamp(max=63)} for b in labelled_batches("llama", 4, 4)]


def same(one: Any, two: Any) -> bool:
    return all(torch.allclose(a.left @ a.right, b.left @ b.right) for a, b in zip(one, two, strict=True))


def test_sites_and_their_readers(pair: tuple[nn.Module, Any, str]) -> None:
    model, wrapped, prefix = pair
    alone, found = find_sites(model, BATCHES[0]), find_sites(wrapped, BATCHES[0])
    assert [site.name for site in found] == [prefix + site.name for site in alone]
    known = dict(wrapped.named_modules())
    assert all(name in known for site in found for name in (site.name, *site.readers))
    for wanted in ("model.layers.*.input_layernorm", f"{prefix}model.layers.*.input_layernorm"):
        assert [site.name for site in find_sites(wrapped, BATCHES[0], wanted)] == [site.name for site in found[::2]]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_scrub(pair: tuple[nn.Module, Any, str], mode: Any) -> None:
    model, wrapped, prefix = pair
    alone, found = scrub(model, BATCHES, mode=mode), scrub(wrapped, BATCHES, mode=mode)
    assert list(found) == [prefix + site for site in alone] and same(alone.values(), found.values())
    assert found.config == alone.config != {}
    known = scrub(wrapped, BATCHES, find_sites(wrapped, BATCHES[0]), mode=mode)
    assert list(known) == list(found) and same(known.values(), found.values())


def test_record(pair: tuple[nn.Module, Any, str]) -> None:
    model, wrapped, prefix = pair
    made = []
    for each in (model, wrapped):
        with record(each, num_classes=CLASSES) as moments, torch.no_grad():
            each(**BATCHES[0])
        made.append(moments)
    assert list(made[1]) == [prefix + site for site in made[0]]
    assert all(torch.allclose(a.covariance, b.covariance) for a, b in zip(*map(dict.values, made), strict=True))


def test_evaluate_and_the_study(pair: tuple[nn.Module, Any, str]) -> None:
    model, wrapped, prefix = pair
    results, studies = [], []
    for each in (model, wrapped):
        scrubber = scrub(each, BATCHES)
        results.append(evaluate(each, held_out(), scrubber))
        names = [str(number) for number in range(CLASSES)]
        studies.append(run_study(each, {"leace": scrubber}, held_out(), class_names=names, random_seeds=1))
    alone, found = results
    assert alone.nats is not None and found.nats == pytest.approx(alone.nats) and found.kl == pytest.approx(alone.kl)
    assert list(found.probes) == [prefix + site for site in alone.probes]
    assert [result.site for result in studies[1].sites] == list(found.probes)


def test_folding(pair: tuple[nn.Module, Any, str], tmp_path: Path) -> None:
    model, wrapped, prefix = pair
    scrubber, example = scrub(model, BATCHES), BATCHES[0]
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    reports = [fold_(each, scrubber, example, max_cost_ratio=99) for each in (model, wrapped)]
    assert list(reports[1].readers) == [prefix + site for site in reports[0].readers]
    known = dict(wrapped.named_modules())
    assert all(name in known for names in reports[1].readers.values() for name in names)
    with pytest.raises(ValueError, match="folded already"):
        fold_(wrapped, scrubber, example, max_cost_ratio=99)
    unfold_(wrapped)
    assert all(torch.equal(value, before[name]) for name, value in wrapped.state_dict().items())
    unfold_(model)
    if prefix.startswith("base_model"):
        with pytest.raises(ValueError, match=r"wrapped by PEFT.*merge_and_unload"):
            export_lora(wrapped, scrubber, tmp_path, example, max_cost_ratio=99)
        with pytest.raises(ValueError, match=r"wrapped by PEFT.*merge_and_unload"):
            export_lora(wrapped.get_base_model(), scrubber, tmp_path, example, max_cost_ratio=99)
        wrapped = wrapped.merge_and_unload()  # as the error tells
    reports = [export_lora(each, scrubber, tmp_path, example, max_cost_ratio=99) for each in (model, wrapped)]
    assert reports[0] == reports[1]


def test_the_residual_stream(pair: tuple[nn.Module, Any, str]) -> None:
    model, wrapped, prefix = pair
    if prefix.startswith("base_model"):
        pytest.skip("adapters write to no stream here, and are refused by their own test")
    eraser = next(iter(scrub(model, BATCHES).values()))
    one, two = (fold_residual_(each, eraser, BATCHES[0]) for each in (model, wrapped))
    assert two.readers == {place: tuple(prefix + name for name in names) for place, names in one.readers.items()}
    unfold_(wrapped)


def test_learned_prompts_are_refused() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny_models.build("llama"), config)
    for use in (lambda: scrub(model, BATCHES), lambda: find_sites(model, BATCHES[0]), lambda: evaluate(model, BATCHES)):
        with pytest.raises(ValueError, match="learned prompts of PEFT"):
            use()
    assert len(find_sites(model.get_base_model(), BATCHES[0])) == 4


@pytest.mark.parametrize("part", ["weights", "one weight", "a buffer"])
def test_models_on_the_meta_device_are_refused(part: str) -> None:
    model = tiny_models.build("llama")
    if part == "weights":
        model.to("meta")
    elif part == "one weight":
        model.model.layers[1].mlp.down_proj.to("meta")
    else:
        model.register_buffer("mean", torch.empty(3, device="meta"))
    eraser = next(iter(scrub(tiny_models.build("llama"), BATCHES).values()))

    def recorded() -> None:
        with record(model, num_classes=CLASSES):
            model(**BATCHES[0])

    uses: list[Callable[[], Any]] = [
        lambda: scrub(model, BATCHES),
        lambda: scrub(model, BATCHES, mode="parallel"),
        lambda: find_sites(model, BATCHES[0]),
        lambda: evaluate(model, BATCHES),
        lambda: fold_(model, {"model.norm": eraser}, BATCHES[0]),
        lambda: fold_residual_(model, eraser, BATCHES[0]),
        recorded,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="is on the device meta, without numbers"):
            use()


def test_offloaded_weights_are_no_missing_ones() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny_models.build("llama", torch.float32)
    alone = scrub(model, BATCHES)
    accelerate.cpu_offload(model, execution_device="cpu")
    found = scrub(model, BATCHES)
    assert list(found) == list(alone) and same(found.values(), alone.values())
    with pytest.raises(ValueError, match="cannot be folded|is on the meta device"):
        fold_(model, found, BATCHES[0])


def test_a_module_without_a_forward_pass_is_refused() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_models.build("llama")

    with pytest.raises(TypeError, match="a Holder has no forward pass"):
        scrub(Holder(), BATCHES)
    holder = Holder()
    holder.forward = holder.inner.forward  # type: ignore[method-assign]
    assert Inside(holder).model is holder and len(scrub(holder, BATCHES)) == 4
