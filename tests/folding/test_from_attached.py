"""What a fold or an adapter says of its distance from the attached model, beside plain hooks; and when it warns."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from folded_models import ROWS, assert_same_state, erasers_of, hooked, state_of
from torch import Tensor, nn

from leace_fast import Eraser, Moments, Scrubber, export_lora, fold_, fold_residual_, leace, unfold_
from leace_fast.folding._agreement import FAR_FROM_ATTACHED, output_of, percent

PHRASE = "of the erasers' effect from the attached model's"


def measured(clean: Tensor, attached: Tensor, got: Tensor) -> float:
    return float((got - attached).double().norm() / (attached - clean).double().norm())


def with_hooks(model: nn.Module, erasers: dict[str, Eraser], batch: Any) -> Tensor:
    handles = hooked(model, erasers)
    output = output_of(model, batch)
    for handle in handles:
        handle.remove()
    return output


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "t5", "falcon"])
def test_a_fold_says_how_far_it_is_from_the_erasers_as_they_were_given(name: str) -> None:
    model, batch, erasers = tiny_models.build(name), tiny_models.batch(name, ROWS), erasers_of(name)
    clean, attached = output_of(model, batch), with_hooks(model, erasers, batch)
    with warnings.catch_warnings(record=True):
        report = fold_(model, erasers, batch, max_cost_ratio=99)
    distance = measured(clean, attached, output_of(model, batch))
    assert report.from_attached == pytest.approx(distance, rel=1e-6, abs=1e-9)
    assert report.lost_offset == tuple(site for site in erasers if report.cost_ratio[site] != 1)
    assert f"{percent(report.from_attached)} {PHRASE}" in str(report)
    if report.lost_offset:
        assert distance > 1e-3 > 1e-9 > report.difference, "the twin agrees, the attached model does not"
        assert f"({len(report.lost_offset)} sites lost the offset)" in str(report)
    else:
        assert distance < 1e-9 and "(every offset is kept)" in str(report)


def test_biases_keep_it_at_the_attached_model() -> None:
    model, batch, erasers = tiny_models.build("llama"), tiny_models.batch("llama", ROWS), erasers_of("llama")
    report = fold_(model, erasers, batch, add_bias=True)
    assert report.from_attached < 1e-9 and report.lost_offset == ()


@pytest.mark.parametrize("lora_bias", [False, True])
def test_an_adapter_says_the_same(lora_bias: bool, tmp_path: Path) -> None:
    model, batch, erasers = tiny_models.build("llama"), tiny_models.batch("llama", ROWS), erasers_of("llama")
    with warnings.catch_warnings(record=True):
        report = Scrubber(erasers).export_lora(model, tmp_path, batch, lora_bias=lora_bias, max_cost_ratio=99)
        folded = fold_(model, erasers, batch, max_cost_ratio=99)
    assert f"{percent(report.from_attached)} {PHRASE}" in str(report)
    if lora_bias:
        assert report.from_attached < 1e-9 and report.lost_offset == ()
    else:
        assert report.from_attached == pytest.approx(folded.from_attached, rel=1e-6)
        assert report.lost_offset == folded.lost_offset


class Layers(nn.Module):
    """Two sites: one that a layer without a bias reads, and one that a layer with a bias reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bare = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.two, self.biased = nn.Tanh(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.biased(self.two(x + self.bare(self.one(x))))


def far(offset: float) -> tuple[nn.Module, dict[str, Eraser], Tensor]:
    """A model, erasers of two classes whose mean at the first site is so far along what tells them, and an example."""
    torch.manual_seed(0)
    model = Layers().double()
    example = torch.randn(60, 4, dtype=torch.float64)
    y = (example[:, 0] > 0).long()
    with torch.no_grad():
        along = model.one.weight[:, 0] / model.one.weight[:, 0].norm()  # which tells the classes
        model.one.bias.add_(offset * along - model.one(example).mean(0))
        first = model.one(example)
        rows = {"one": first, "two": model.two(example + model.bare(first))}
    return model, {site: leace(Moments(4, 2).update(x, y), shrinkage=False) for site, x in rows.items()}, example


def test_far_from_the_attached_model_is_warned_of_with_the_remedy(tmp_path: Path) -> None:
    model, erasers, example = far(offset=1.0)
    before = state_of(model)
    with pytest.warns(UserWarning, match="1 of 2 sites lost their offset .*'one'.*: add_bias=True keeps it, or att"):
        report = fold_(model, erasers, example, max_cost_ratio=1e6)
    assert report.from_attached > FAR_FROM_ATTACHED and report.difference < 1e-10
    unfold_(model)
    with pytest.warns(UserWarning, match=f"{PHRASE}.*lora_bias=True keeps it"):
        export_lora(model, erasers, tmp_path / "adapter", example, max_cost_ratio=1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = fold_(model, erasers, example, add_bias=True)
        assert kept.from_attached < 1e-9 and kept.lost_offset == ()
        unfold_(model)
        with pytest.raises(UserWarning):
            fold_(model, erasers, example, max_cost_ratio=1e6)
        with pytest.raises(UserWarning):
            export_lora(model, erasers, tmp_path / "none", example, max_cost_ratio=1e6)
    assert_same_state(model, before)
    assert not (tmp_path / "none").exists(), "a call that fails writes nothing"


def test_near_it_nothing_is_said() -> None:
    model, erasers, example = far(offset=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = fold_(model, erasers, example, max_cost_ratio=1e6)
    assert report.from_attached <= FAR_FROM_ATTACHED and report.lost_offset == ("one",)


def test_rounding_is_named_where_no_offset_was_lost() -> None:
    """A faint effect in bfloat16: rounding is a large share of it."""
    model, _, example = far(offset=0.0)
    model, example = model.bfloat16(), example.bfloat16()
    faint = Eraser(1e-2 * torch.eye(4)[:, :1], torch.eye(4)[:1])
    with pytest.warns(UserWarning, match="the weights are rounded: take them in a wider dtype, or attach"):
        report = fold_(model, {"two": faint}, example)
    assert report.from_attached > FAR_FROM_ATTACHED and report.lost_offset == ()


def test_the_residual_stream_keeps_its_offset() -> None:
    block = nn.Sequential(nn.Embedding(8, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    eraser = Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1], torch.ones(4)).to(dtype=torch.float64)
    report = fold_residual_(block, eraser, torch.arange(8))
    assert report.from_attached < 1e-9 and report.lost_offset == () and "(every offset is kept)" in str(report)
