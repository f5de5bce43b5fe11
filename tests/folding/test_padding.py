"""Erasers in the weights of models that multiply rows by the mask of padding, against hooks, on left-padded batches."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber, export_lora, find_sites, fold_, leace, record, unfold_
from leace_fast.folding._agreement import output_of
from leace_fast.folding._padding import with_padding
from leace_fast.models import submodules

BIAS = {"mamba": "use_bias", "mamba2": "use_bias", "lfm2": "conv_bias"}  # of the layer that reads masked rows


def build(name: str, biased: bool) -> Any:
    options: dict[str, Any] = {BIAS.get(name, "mamba_proj_bias"): biased}
    return tiny_models.build(name, **options)


def batch(rows: int = 40, padded: bool = True) -> dict[str, Tensor]:
    ids = torch.randint(
        3, tiny_models.VOCABULARY, (rows, tiny_models.LENGTH), generator=torch.Generator().manual_seed(1)
    )
    if not padded:
        return {"input_ids": ids}
    mask = torch.arange(tiny_models.LENGTH) >= (torch.arange(rows) % 4)[:, None]
    return {"input_ids": ids.where(mask, 0), "attention_mask": mask.long()}


@cache
def erasers_of(name: str, biased: bool) -> dict[str, Eraser]:
    model, inputs = build(name, biased), batch()
    labels = torch.randint(0, 2, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(3))
    with record(model, find_sites(model, inputs), num_classes=2) as moments, torch.no_grad():
        model(**inputs, concept_labels=labels)
    return {site: leace(m, shrinkage=True) for site, m in moments.items()}


def logits(model: nn.Module, erasers: dict[str, Eraser], inputs: dict[str, Tensor]) -> Tensor:
    """Of the tokens that count, with the formula in hooks."""

    def hook(eraser: Eraser) -> Any:
        left, right = eraser.left.double(), eraser.right.double()
        mean = torch.zeros(eraser.dim).double() if eraser.mean is None else eraser.mean.double()
        return lambda module, args, x: x - ((x - mean) @ right.mT) @ left.mT

    handles = [m.register_forward_hook(hook(erasers[site])) for site, m in submodules(model, erasers).items()]
    try:
        output = output_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return output[inputs["attention_mask"].bool()] if "attention_mask" in inputs else output.flatten(0, 1)


def away(one: Tensor, two: Tensor) -> float:
    return float((one - two).norm() / two.norm())


def masked_sites(name: str) -> list[str]:
    """Those whose rows a mixer reads; the other layer of the hybrids is one of attention."""
    sites = list(erasers_of(name, False))
    return sites if name.startswith("mamba") else sites[:1]


@pytest.mark.parametrize(
    ("example", "add_bias"),
    [("padded", False), ("whole", False), ("whole", True), ("one token", False), ("its own", True)],
)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", tiny_models.STATE_SPACE)
def test_folded_is_hooked_on_padded_batches(name: str, biased: bool, example: str, add_bias: bool) -> None:
    model, erasers = build(name, biased), erasers_of(name, biased)
    examples = {"padded": batch(), "whole": batch(padded=False), "one token": torch.tensor([[5]]), "its own": None}
    if add_bias and name in ("jamba", "lfm2"):
        with pytest.raises(ValueError, match="no flag of"):
            fold_(model, erasers, examples[example], add_bias=True, max_cost_ratio=99)
        return
    report = fold_(model, erasers, examples[example], add_bias=add_bias, max_cost_ratio=99)
    assert all(report.cost_ratio[site] > 1 for site in masked_sites(name)), "no offset in front of the mask"
    folded = {site: e if report.cost_ratio[site] == 1 else e.without_offset(99) for site, e in erasers.items()}
    got = [logits(model, {}, inputs) for inputs in (batch(), batch(padded=False))]
    unfold_(model)
    for mine, inputs in zip(got, (batch(), batch(padded=False)), strict=True):
        wanted = logits(model, folded, inputs)
        assert away(mine, wanted) < 1e-6 and away(logits(model, {}, inputs), wanted) > 1e-3


@pytest.mark.parametrize("example", [batch(), batch(padded=False)])
@pytest.mark.parametrize("name", tiny_models.STATE_SPACE)
def test_a_mean_that_needs_a_bias_is_refused_and_the_reader_named(name: str, example: dict[str, Tensor]) -> None:
    model, erasers = build(name, True), erasers_of(name, True)
    site = masked_sites(name)[0]
    right = erasers[site].right.double()
    far = 5 * right[0] / right[0].norm()  # along what is erased
    eraser = Eraser(erasers[site].left.double(), right, far, mean_solve=far)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for add_bias in (False, True):
        with pytest.raises(ValueError) as error:
            fold_(model, {site: eraser}, example, add_bias=add_bias)
        message = str(error.value)
        assert f"{site!r} is read by " in message and "in_proj' after a factor" in message
        assert "without an offset" in message and "attach the scrubber" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with Scrubber({site: eraser}).attached(model):
        got = logits(model, {}, batch())
    assert away(got, logits(model, {site: eraser}, batch())) < 1e-6


@pytest.mark.parametrize("name", ["mamba", "bamba"])
def test_an_adapter_with_biases_has_none_in_front_of_the_mask(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, erasers = build(name, True), erasers_of(name, True)
    report = export_lora(model, erasers, tmp_path, batch(padded=False), lora_bias=True, max_cost_ratio=99)
    assert sorted(site for site, ratio in report.cost_ratio.items() if ratio > 1) == sorted(masked_sites(name))
    folded = {site: e if report.cost_ratio[site] == 1 else e.without_offset(99) for site, e in erasers.items()}
    wanted = logits(model, folded, batch())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        warnings.filterwarnings("ignore", message=".*lora_bias=True")  # it cannot merge them
        adapted = peft.PeftModel.from_pretrained(model, tmp_path, autocast_adapter_dtype=False).eval()
    assert away(logits(adapted, {}, batch()), wanted) < 1e-6
    assert len(with_padding(adapted, batch(padded=False))) == 2, "wrapped as well"


def test_examples_with_padding() -> None:
    model, ids = build("mamba", False), batch(2, padded=False)["input_ids"]
    mask = torch.ones_like(ids)
    for example in (ids, {"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        first, second = with_padding(model, example)
        assert first is example and second["attention_mask"].sum() == 4 * mask.sum() - 1
        assert second["attention_mask"][0, 0] == 0 and torch.equal(second["input_ids"], ids.repeat(2, 2))
    assert mask.all()
    for example in (
        batch(2),
        {"input_ids": ids, "attention_mask": mask[:, None, None]},
        {"inputs_embeds": ids.float()},
    ):
        assert with_padding(model, example) == [example]
    example = {"input_ids": ids, "decoder_input_ids": ids[:, 1:]}
    _, second = with_padding(tiny_models.build("t5"), example)  # of two lengths: not repeated
    assert (
        second["attention_mask"].sum() == mask.sum() - 1 and second["decoder_input_ids"] is example["decoder_input_ids"]
    )
    images = tiny_models.batch("vit")
    assert with_padding(tiny_models.build("vit"), images)[0] is images and len(with_padding(nn.Linear(4, 4), ids)) == 1
