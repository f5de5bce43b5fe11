"""Erasers in the weights: the hooked model's output, the model saved and loaded again, restoration."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from folded_models import (
    ROWS,
    assert_loaded,
    assert_same_state,
    close,
    erasers_of,
    generated,
    hooked,
    moments_of,
    state_of,
)
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber, find_sites, fold_, leace, unfold_
from leace_fast.folding import _folding as fold_module
from leace_fast.folding._agreement import output_of
from leace_fast.folding._edits import Edits
from leace_fast.folding._readers import readings_of

UP = "model.layers.1.post_attention_layernorm"  # of the Llama


def biased(name: str, site: str) -> bool:
    """Whether all readers of a site have a bias."""
    return name in ("phi", "gpt_neox", "gpt2", "opt", "bert", "vit") or (name == "qwen2" and "input" in site)


def fitting(name: str, site: str) -> Eraser:
    """What should be folded, from the moments."""
    affine = biased(name, site)
    return leace(moments_of(name)[site], affine=affine, shrinkage=True, max_cost_ratio=99)


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_folded_is_hooked_saves_loads_and_unfolds(name: str, tmp_path: Path) -> None:
    model, batch, other = tiny_models.build(name), tiny_models.batch(name, ROWS), tiny_models.batch(name, 5, seed=9)
    before, clean, scrubber = state_of(model), output_of(model, other), Scrubber(erasers_of(name))
    handles = hooked(model, {site: fitting(name, site) for site in scrubber})
    wanted, text = output_of(model, other), generated(model, name) if name in (*tiny_models.DECODERS, "t5") else None
    for handle in handles:
        handle.remove()
    report = scrubber.fold_(model, batch, max_cost_ratio=99)
    assert list(report.readers) == list(scrubber) and report.leak < 1e-14 and report.difference < 1e-10
    assert all((report.cost_ratio[site] == 1) == biased(name, site) for site in scrubber)
    assert close(output_of(model, other), wanted, 1e-10) and not close(wanted, clean, 1e-3)
    if text is not None:
        assert torch.equal(generated(model, name), text)
    model.save_pretrained(tmp_path)
    options = {"experts_implementation": "eager"} if name == "mixtral" else {}  # the config does not save it
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64, **options).eval()
    assert_loaded(loaded, model, other)
    assert report.bytes_kept == sum(before[n].nbytes for n in before if not torch.equal(before[n], state_of(model)[n]))
    scrubber.unfold_(model)
    assert_same_state(model, before)
    assert torch.equal(output_of(model, other), clean)


@pytest.mark.parametrize(("name", "flags"), [("llama", ["attention_bias", "mlp_bias"]), ("falcon", ["bias"])])
def test_biases_come_with_their_flags(name: str, flags: list[str], tmp_path: Path) -> None:
    model, batch, erasers = tiny_models.build(name), tiny_models.batch(name, ROWS), erasers_of(name)
    before, config, clean = state_of(model), model.config.to_dict(), output_of(model, batch)
    handles = hooked(model, erasers)  # with their offsets
    wanted = output_of(model, batch)
    for handle in handles:
        handle.remove()
    report = fold_(model, erasers, batch, add_bias=True)
    assert set(report.cost_ratio.values()) == {1.0} and close(output_of(model, batch), wanted, 1e-10)
    assert all(getattr(model.config, flag) is True for flag in flags)
    added = {key: value for key, value in model.state_dict().items() if key not in before}
    readers = {f"{reader}.bias" for names in report.readers.values() for reader in names}
    assert readers < set(added), "the flags bring others"
    assert all(bool(value.any()) == (key in readers) for key, value in added.items()), "which are zero"
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_loaded(loaded, model, batch)
    unfold_(model)
    assert_same_state(model, before)
    saved = {"dtype": None, "architectures": None}  # which saving sets
    assert {**model.config.to_dict(), **saved} == {**config, **saved}
    assert torch.equal(output_of(model, batch), clean)


def test_no_flag_no_bias() -> None:
    model, batch = tiny_models.build("mistral"), tiny_models.batch("mistral", ROWS)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"no flag of MistralConfig adds model.layers.0.mlp.gate_proj.bias"):
        fold_(model, erasers_of("mistral"), batch, add_bias=True)
    assert_same_state(model, before)


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, 1e-9, 1e-6), (torch.bfloat16, 1e-4, 1e-2)])
def test_narrower_weights_say_what_they_still_read(dtype: torch.dtype, least: float, most: float) -> None:
    model, batch, erasers = tiny_models.build("gpt2", dtype), tiny_models.batch("gpt2", ROWS), erasers_of("gpt2")
    report = fold_(model, erasers, batch)
    weight = model.transformer.h[0].attn.c_attn.weight.detach().double()
    left, original = erasers["transformer.h.0.ln_1"].left, tiny_models.build("gpt2", dtype).transformer.h[0]
    measured = (left.mT @ weight).norm() / (left.mT @ original.attn.c_attn.weight.detach().double()).norm()
    assert least < float(measured) <= report.leak < most and f"{report.leak:.1e}" in str(report)


def test_the_models_own_example_and_modes() -> None:
    model = tiny_models.build("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    scrubber = Scrubber(erasers_of("llama"))
    assert scrubber.fold_(model).difference < 1e-10
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="folded already"):
        scrubber.fold_(model)
    with pytest.raises(ValueError, match="folded already"):
        scrubber.fold_(nn.Sequential(model))
    with pytest.raises(ValueError, match="an example is needed"):
        fold_(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), {"0": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])})
    with pytest.raises(ValueError, match="an example is needed"):  # its dummy inputs are text
        fold_(tiny_models.build("vit"), erasers_of("vit"))


def test_a_linear_eraser_says_its_own_cost_and_one_of_rank_zero_changes_nothing() -> None:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama", ROWS)
    before, linear = state_of(model), fitting("llama", UP)
    assert linear.report is not None and linear.report.cost_ratio > 1
    nothing = Eraser(torch.zeros(16, 0), torch.zeros(0, 16))
    report = fold_(model, {UP: linear, "model.layers.0.input_layernorm": nothing}, batch)
    assert report.cost_ratio == {UP: linear.report.cost_ratio, "model.layers.0.input_layernorm": 1.0}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.1.mlp.{reader}.weight" for reader in ("gate_proj", "up_proj")}


@pytest.mark.slow
def test_compiled_code_runs_folded() -> None:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama", ROWS)
    compiled: Any = torch.compile(model, backend="eager")
    clean = output_of(compiled, batch)
    fold_(model, erasers_of("llama"), batch, add_bias=True)
    assert torch.equal(output_of(compiled, batch), output_of(model, batch))
    unfold_(model)
    assert torch.allclose(output_of(compiled, batch), clean, rtol=1e-12)


# ------------------------------------------------------------------ unfolding


def test_unfolding_what_is_not_folded_or_was_changed() -> None:
    model, batch, erasers = tiny_models.build("llama"), tiny_models.batch("llama", ROWS), erasers_of("llama")
    with pytest.raises(ValueError, match="not folded"):
        unfold_(model)
    fold_(model, erasers, batch)
    with pytest.raises(ValueError, match="not folded"):
        unfold_(copy.deepcopy(model))
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.mul_(2)
    changed = state_of(model)
    with pytest.raises(ValueError, match="'model.layers.1.mlp.up_proj.weight' was changed after"):
        unfold_(model)
    assert_same_state(model, changed)
    model = tiny_models.build("llama")
    assert fold_(model, erasers, batch, keep_originals=False).bytes_kept == 0
    with pytest.raises(ValueError, match="keep_originals=False"):
        unfold_(model)
    model = tiny_models.build("llama")
    fold_(model, erasers, batch)
    model.float()
    with pytest.raises(ValueError, match="was changed after"):
        unfold_(model)


def test_a_failure_half_way_restores_every_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama", ROWS)
    before, config, written = state_of(model), model.config.to_dict(), []
    write = Edits.write

    def failing(self: Edits, model: nn.Module, name: str, value: Tensor) -> None:
        if len(written) == 7:
            raise MemoryError
        written.append(name)
        write(self, model, name, value)

    monkeypatch.setattr(Edits, "write", failing)
    with pytest.raises(MemoryError):
        fold_(model, erasers_of("llama"), batch, add_bias=True)
    assert len(written) == 7
    assert_same_state(model, before)
    assert model.config.to_dict() == config
    monkeypatch.undo()
    fold_(model, erasers_of("llama"), batch)  # and nothing remembers the failure


class Unseen(nn.Module):
    """Reads the norm by numpy, which no tracing of operations sees."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.up(x) + torch.from_numpy(x.detach().numpy() @ self.down.weight.detach().numpy().T)


def test_a_model_that_does_not_agree_is_restored() -> None:
    model, x = Unseen().double(), torch.randn(5, 4, dtype=torch.float64)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="away from the hooked model's.*nothing was changed"):
        fold_(model, {"norm": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])}, x)
    assert_same_state(model, before)
    with pytest.raises(RuntimeError, match="away from the hooked model's"):
        fold_(
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)),
            {"0": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])},
            torch.full((2, 4), torch.nan),
        )


# ------------------------------------------------------------ mixtures, lists, copies


class Mixture(nn.Module):
    """Rows sent to one of the experts of a list, by a router; and a norm that is cast and gathered first."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(4), nn.Linear(4, experts)
        self.experts = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, 3, bias=i % 2 == 0)}) for i in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).reshape(-1, 4)
        chosen = self.router(rows).argmax(-1)
        out = torch.zeros(len(rows), 3, dtype=x.dtype)
        for i, expert in enumerate(self.experts):
            if (chosen == i).any():
                out[chosen == i] = expert["up"](rows[chosen == i].to(expert["up"].weight.dtype)).to(x.dtype)  # type: ignore[index]
        return out.reshape(*x.shape[:-1], 3)


def test_experts_that_no_row_chose_are_folded_too() -> None:
    torch.manual_seed(0)
    model, x = Mixture(6).double(), torch.randn(2, 4, dtype=torch.float64)
    eraser = Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])
    twin = copy.deepcopy(model)
    report = fold_(model, {"norm": eraser}, x)
    assert report.readers["norm"] == tuple(f"experts.{i}.up" for i in range(6)) + ("router",)
    rows = torch.randn(200, 4, dtype=torch.float64)
    hooked(twin, {"norm": eraser})
    assert torch.allclose(model(rows), twin(rows), rtol=0, atol=1e-12)


def test_fused_experts_and_their_router() -> None:
    model, batch = tiny_models.build("mixtral"), tiny_models.batch("mixtral", 1)
    erasers = erasers_of("mixtral")
    report = fold_(model, erasers, batch, max_cost_ratio=99)
    assert report.readers["model.layers.0.post_attention_layernorm"] == (
        "model.layers.0.mlp.experts",
        "model.layers.0.mlp.gate",
    )
    left = erasers["model.layers.0.post_attention_layernorm"].left
    weight = model.model.layers[0].mlp.experts.gate_up_proj.detach()
    assert weight.ndim == 3 and float((weight @ left).abs().max()) < 1e-12 * float(weight.abs().max())


_MOE = {**tiny_models._DECODER, "num_local_experts": 6, "num_experts_per_tok": 1}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fused projections": ("Phi3Config", "Phi3ForCausalLM", tiny_models._without("head_dim")),
    "grouped experts": ("MixtralConfig", "MixtralForCausalLM", _MOE),
    "batched experts": ("MixtralConfig", "MixtralForCausalLM", {**_MOE, "experts_implementation": "batched_mm"}),
    "transposed experts with biases": ("GptOssConfig", "GptOssForCausalLM", _MOE),
    "latent attention, a router in float32": ("DeepseekV3Config", "DeepseekV3ForCausalLM", tiny_models.LATENT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_readers_of_every_kind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny_models.TABLE, kind, KINDS[kind])
    model = tiny_models.build(kind, torch.float32)  # the grouped product has no float64
    few, many = tiny_models.batch(kind, 1), tiny_models.batch(kind, ROWS)
    erasers = {}
    for site in find_sites(model, few):
        left = torch.linalg.qr(torch.randn(site.width, 2, generator=torch.Generator().manual_seed(0))).Q.double()
        has_biases = all(reader.bias for reader in readings_of(model, [site.name], few)[site.name].readers)
        erasers[site.name] = Eraser(left, left.mT, torch.linspace(-1, 1, site.width) if has_biases else None)
    assert sum(e.mean is not None for e in erasers.values()) == (4 if "biases" in kind else 0)
    handles = hooked(model, erasers)
    wanted = output_of(model, many)
    for handle in handles:
        handle.remove()
    clean = output_of(model, many)
    fold_(model, erasers, few)  # most experts are chosen by no row of these few
    assert close(output_of(model, many), wanted, 1e-5) and not close(wanted, clean, 1e-2)


def test_adapters_of_a_wrapped_model_are_folded_too_idle_or_not() -> None:
    peft = pytest.importorskip("peft")
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama", ROWS)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, lora_dropout=0.5)
    wrapped = peft.get_peft_model(model, config)
    wrapped.add_adapter("idle", config)
    wrapped.double().eval()
    before, prefix = state_of(wrapped), "base_model.model."
    report = fold_(wrapped, {prefix + site: e for site, e in erasers_of("llama").items()}, batch)
    assert f"{prefix}model.layers.0.self_attn.q_proj.lora_A.idle" in next(iter(report.readers.values()))
    wrapped.set_adapter("idle")
    got = output_of(wrapped, batch)
    unfold_(wrapped)
    assert_same_state(wrapped, before)
    hooked(wrapped, {prefix + site: fitting("llama", site) for site in erasers_of("llama")})
    assert close(got, output_of(wrapped, batch), 1e-10)


def test_the_numbers_of_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama", ROWS)
    monkeypatch.setattr(fold_module, "hooked_output", lambda model, erasers, example: output_of(model, example) * 1.2)
    with pytest.raises(RuntimeError, match="away"):
        fold_(model, erasers_of("llama"), batch)
