"""LoRA adapters of erasers: the hooked model's output by plain arithmetic and by PEFT, and what rounding leaves."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from folded_models import ROWS, assert_same_state, close, erasers_of, generated, hooked, moments_of, state_of
from safetensors.torch import load_file
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber, leace
from leace_fast.folding import export_lora
from leace_fast.folding._agreement import output_of
from leace_fast.folding._lora import CONFIG, WEIGHTS

LORA = tuple(name for name in tiny_models.ARCHITECTURES if name != "mixtral")  # whose experts and router are no linears


def linear(name: str) -> dict[str, Eraser]:
    """What should be exported, from the moments."""
    moments = moments_of(name)
    return {site: leace(m, affine=False, shrinkage=True, max_cost_ratio=math.inf) for site, m in moments.items()}


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)


def merge_(model: nn.Module, folder: Path) -> None:
    """Add an adapter to the weights with nothing but arithmetic; half as PEFT reads it, so that alpha and r count."""
    config, tensors = read(folder)
    names = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight")}
    for name in names:
        module = model.get_submodule(name.removeprefix("base_model.model."))
        place = name.removeprefix("base_model.model.")
        rank = config["rank_pattern"].get(place, config["r"])
        scale = config["alpha_pattern"].get(place, config["lora_alpha"]) / rank
        down, up = tensors[f"{name}.lora_A.weight"].double(), tensors[f"{name}.lora_B.weight"].double()
        assert len(down) == up.shape[1] == rank
        delta = scale * up @ down
        weight: Any = module.weight
        weight.data += (delta.mT if config["fan_in_fan_out"] else delta).to(weight.dtype)


@pytest.mark.parametrize("name", LORA)
def test_merged_by_arithmetic_is_hooked(name: str, tmp_path: Path) -> None:
    model, batch, other = tiny_models.build(name), tiny_models.batch(name, ROWS), tiny_models.batch(name, 5, seed=9)
    before, scrubber = state_of(model), Scrubber(erasers_of(name), "org/model")
    report = scrubber.export_lora(model, tmp_path / "new", batch, max_cost_ratio=99)
    assert_same_state(model, before)
    assert report.leak < 1e-14 and report.damage == pytest.approx(0, abs=1e-12) and report.difference < 1e-10
    assert report.rank == 1 and f"{report.leak:.1e}" in str(report)
    config, tensors = read(tmp_path / "new")
    assert config["r"] == config["lora_alpha"] == 1 and config["bias"] == "none" and not config["rank_pattern"]
    assert config["base_model_name_or_path"] == "org/model" and config["fan_in_fan_out"] == (name == "gpt2")
    assert not any(key.endswith("bias") for key in tensors) and {t.dtype for t in tensors.values()} == {torch.float64}
    handles = hooked(model, linear(name))
    wanted, text = output_of(model, other), generated(model, name) if name in (*tiny_models.DECODERS, "t5") else None
    for handle in handles:
        handle.remove()
    clean = output_of(model, other)
    merge_(model, tmp_path / "new")
    assert close(output_of(model, other), wanted, 1e-10) and not close(wanted, clean, 1e-3)
    if text is not None:
        assert torch.equal(generated(model, name), text)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert", pytest.param("phi", marks=pytest.mark.slow)])
def test_peft_serves_it(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, batch = tiny_models.build(name), tiny_models.batch(name, ROWS)
    handles = hooked(model, linear(name))
    wanted, text = output_of(model, batch), None if name == "bert" else generated(model, name)
    for handle in handles:
        handle.remove()
    Scrubber(erasers_of(name)).export_lora(model, tmp_path, batch, max_cost_ratio=99)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # missing or surplus keys
        adapted = peft.PeftModel.from_pretrained(model, tmp_path, autocast_adapter_dtype=False).eval()
    assert close(output_of(adapted, batch), wanted, 1e-10)
    if text is not None:
        assert torch.equal(generated(adapted, name), text)
    with pytest.raises(ValueError, match="wrapped by PEFT"):
        export_lora(adapted, erasers_of(name), tmp_path, batch)
    assert close(output_of(adapted.merge_and_unload(), batch), wanted, 1e-10)


def test_peft_keeps_the_offset_in_biases(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, batch, erasers = tiny_models.build("llama"), tiny_models.batch("llama", ROWS), erasers_of("llama")
    handles = hooked(model, erasers)
    wanted = output_of(model, batch)
    for handle in handles:
        handle.remove()
    report = export_lora(model, erasers, tmp_path, batch, lora_bias=True)
    assert set(report.cost_ratio.values()) == {1.0}
    config, tensors = read(tmp_path)
    assert config["lora_bias"] is True and config["bias"] == "none"
    assert sum(key.endswith("lora_B.bias") for key in tensors) == 10
    with pytest.warns(UserWarning, match="lora_bias=True"):  # PEFT says that it cannot merge them
        adapted = peft.PeftModel.from_pretrained(model, tmp_path, autocast_adapter_dtype=False).eval()
    assert close(output_of(adapted, batch), wanted, 1e-10)


def test_ranks_that_differ_and_layers_left_out(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama", ROWS)
    one, two = "model.layers.0.input_layernorm", "model.layers.1.post_attention_layernorm"
    left = torch.linalg.qr(torch.randn(16, 3, dtype=torch.float64)).Q
    nothing = {"model.layers.0.post_attention_layernorm": Eraser(torch.zeros(16, 0), torch.zeros(0, 16))}
    erasers = {one: linear("llama")[one], two: Eraser(left, left.mT), **nothing}
    report = export_lora(model, erasers, tmp_path, batch)
    config, _ = read(tmp_path)
    assert report.rank == 1 and sorted(config["rank_pattern"].values()) == [3, 3]
    assert config["alpha_pattern"] == config["rank_pattern"] and len(config["target_modules"]) == 5, "names in full"
    handles = hooked(model, erasers)
    wanted = output_of(model, batch)
    for handle in handles:
        handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted = peft.PeftModel.from_pretrained(model, tmp_path, autocast_adapter_dtype=False).eval()
    assert close(output_of(adapted, batch), wanted, 1e-10)


# ------------------------------------------------------------------ 16 bits


def wide(outliers: bool = False, dim: int = 256, rank: int = 4) -> tuple[Any, Tensor, Eraser]:
    """A norm with columns of unlike size, its reader, rows, and a fitted eraser; outliers are large and move alike."""
    from leace_fast import Moments

    generator = torch.Generator().manual_seed(0)
    model: Any = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)).double()
    x = torch.randn(6000, dim, generator=generator, dtype=torch.float64)
    y = torch.randint(0, rank + 1, (6000,), generator=generator)
    x += torch.randn(rank + 1, dim, generator=generator, dtype=torch.float64)[y]
    with torch.no_grad():
        model[0].weight.copy_(torch.exp(torch.randn(dim, generator=generator, dtype=torch.float64)))
        if outliers:
            model[0].weight[:8] = 100
            x[:, 1:8] = x[:, :1] + 0.03 * x[:, 1:8]
        model[0].bias.copy_(model[0].weight / 8)
        moments = Moments(dim, num_classes=rank + 1).update(model[0](x), y)
    return model, x, leace(moments)


def left_over(model: Any, eraser: Eraser, folder: Path) -> float:
    """The share of the concept's covariance that the merged reader still reads, by arithmetic."""
    merged: Any = nn.Sequential(nn.Identity(), nn.Linear(eraser.dim, eraser.dim, bias=False)).double()
    merged.load_state_dict({"1.weight": model[1].weight.double()})
    before = merged[1].weight.detach() @ eraser.left
    merge_(merged, folder)
    return float((merged[1].weight.detach() @ eraser.left).norm() / before.norm())


@pytest.mark.parametrize("outliers", [False, True])
def test_two_parts_leave_a_thousandth_of_what_one_leaves_in_bfloat16(outliers: bool, tmp_path: Path) -> None:
    model, x, eraser = wide(outliers)
    model.bfloat16()
    plain = export_lora(model, {"0": eraser}, tmp_path / "plain", x.bfloat16(), split=False)
    split = export_lora(model, {"0": eraser}, tmp_path / "split", x.bfloat16())
    assert plain.rank == 4 and split.rank in (8, 12)
    assert 1e-3 < plain.leak < 0.2 and split.leak < 2e-5 and split.leak < plain.leak / 300
    for report in (plain, split):
        assert left_over(model, eraser.without_offset(), report.folder) == pytest.approx(report.leak, rel=1e-6)
    assert split.damage < 0.01
    config, tensors = read(split.folder)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16} and config["r"] == config["lora_alpha"] == split.rank


def test_one_part_is_enough_in_float32(tmp_path: Path) -> None:
    model, x, eraser = wide()
    report = export_lora(model.float(), {"0": eraser}, tmp_path, x.float())
    assert report.rank == 4 and report.leak < 1e-6


def test_r_is_split_too_where_its_rounding_costs(tmp_path: Path) -> None:
    """Three large columns that R reads with weights of sum zero: rounded, they do not cancel."""
    model, x, _ = wide()
    right = torch.randn(1, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right[:, 2] = -right[:, 0] - right[:, 1]
    with torch.no_grad():
        model[0].bias[:3] = 1000
    eraser = Eraser(right.mT / right.square().sum(), right)
    report = export_lora(model, {"0": eraser}, tmp_path, x, dtype=torch.bfloat16)
    assert report.rank == 3 and report.leak < 2e-5 and report.damage < 0.01
    assert left_over(model, eraser, tmp_path) == pytest.approx(report.leak, rel=1e-6)


def test_half_precision_stays_in_range(tmp_path: Path) -> None:
    model, x, eraser = wide()
    small = Eraser(eraser.left * 1e9, eraser.right * 1e-9)
    report = export_lora(model.half(), {"0": small}, tmp_path, x.half())
    assert report.leak < 1e-6 and report.rank == 8
    assert all(bool(t.isfinite().all()) for t in read(tmp_path)[1].values())


@pytest.mark.parametrize("strength", [0.0, 2.0, -1.0])
def test_other_strengths(strength: float, tmp_path: Path) -> None:
    model, x, eraser = wide()
    scaled = eraser.without_offset().scaled(strength)
    report = export_lora(model.bfloat16(), {"0": scaled}, tmp_path, x.bfloat16())
    assert report.leak < 2e-5
    assert left_over(model, scaled, tmp_path) == pytest.approx(abs(1 - strength), abs=1e-4) or strength == 0


# ----------------------------------------------------------------- refusals


def test_what_lora_cannot_reach_is_named_and_nothing_written(tmp_path: Path) -> None:
    model, batch = tiny_models.build("mixtral"), tiny_models.batch("mixtral", ROWS)
    site = "model.layers.0.post_attention_layernorm"
    with pytest.raises(ValueError, match=rf"'{site}' is read by 'model.layers.0.mlp.experts', a MixtralExperts"):
        export_lora(model, erasers_of("mixtral"), tmp_path / "new", batch, max_cost_ratio=99)
    assert not (tmp_path / "new").exists()
    bert = tiny_models.build("bert")
    norm = "bert.encoder.layer.0.attention.output.LayerNorm"
    with pytest.raises(ValueError, match=f"'{norm}' cannot be folded.*'bert.encoder.layer.0.output' by add"):
        export_lora(bert, {norm: Eraser(torch.eye(16)[:, :1], torch.eye(16)[:1])}, tmp_path, tiny_models.batch("bert"))
    llama, erasers = tiny_models.build("llama"), erasers_of("llama")
    with pytest.raises(ValueError, match="nothing to fold"):
        export_lora(llama, {norm: Eraser(torch.zeros(16, 0), torch.zeros(0, 16))}, tmp_path, tiny_models.batch("llama"))
    custom = {site: Eraser(eraser.left, eraser.right, eraser.mean) for site, eraser in erasers.items()}
    with pytest.raises(ValueError, match="takes no bias, and an eraser by 'custom' keeps no mean_solve"):
        export_lora(llama, custom, tmp_path, tiny_models.batch("llama"))


def test_the_model_comes_first(tmp_path: Path) -> None:
    model, erasers = tiny_models.build("llama"), erasers_of("llama")
    with pytest.raises(TypeError, match=r"model is a .*Path, expected a module: load it first"):
        export_lora(tmp_path, model, erasers)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model is a .*Path, expected a module: load it first"):
        Scrubber(erasers).export_lora(tmp_path, model)  # type: ignore[arg-type]


def test_an_adapter_that_does_not_agree_is_not_written(tmp_path: Path) -> None:
    class Bypassed(nn.Linear):
        def __call__(self, *args: Any) -> Any:  # runs no hooks, as a fused kernel does
            return self.forward(*args)

    model = nn.Sequential(nn.LayerNorm(4), Bypassed(4, 4)).double()
    with pytest.raises((RuntimeError, ValueError), match="hooked model's|'1'|'the model'"):
        export_lora(
            model, {"0": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])}, tmp_path / "new", torch.randn(3, 4).double()
        )
    assert not (tmp_path / "new").exists()
