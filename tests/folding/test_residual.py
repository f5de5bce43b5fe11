"""One eraser for the whole residual stream, in the weights that write to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from folded_models import assert_loaded, assert_same_state, close, generated, state_of
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber, fold_residual_, unfold_
from leace_fast.folding._agreement import output_of
from leace_fast.models import is_norm

FOLDABLE = ("llama", "mistral", "qwen2", "qwen3", "phi", "gpt_neox", "gpt2", "opt", "falcon")


def oblique(rank: int = 2) -> Eraser:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(16, rank, generator=generator, dtype=torch.float64)
    right = left.mT + 0.3 * torch.randn(rank, 16, generator=generator, dtype=torch.float64)
    mean = torch.randn(16, generator=generator, dtype=torch.float64)
    return Eraser(left, torch.linalg.solve(right @ left, right), mean)


def reading_erased(model: nn.Module, eraser: Eraser) -> list[Any]:
    """Every norm of the stream reads erased rows: what an erased stream comes to, as nothing else reads it."""

    def hook(module: nn.Module, args: Any) -> Any:
        x = args[0]
        return (x - ((x - eraser.mean) @ eraser.right.mT) @ eraser.left.mT, *args[1:]) if x.shape[-1] == 16 else None

    return [m.register_forward_pre_hook(hook) for m in model.modules() if is_norm(m)]


@pytest.mark.parametrize("name", FOLDABLE)
def test_every_position_is_erased(name: str, tmp_path: Path) -> None:
    model, batch, other = tiny_models.build(name), tiny_models.batch(name), tiny_models.batch(name, 5, seed=9)
    before, config, eraser = state_of(model), model.config.to_dict(), oblique()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    clean = output_of(model, other)
    handles = reading_erased(model, eraser)
    wanted, text = output_of(model, other), generated(model, name)
    for handle in handles:
        handle.remove()
    report = fold_residual_(model, eraser, batch)
    assert close(output_of(model, other), wanted, 1e-10) and not close(wanted, clean, 0.05)
    assert torch.equal(generated(model, name), text) and report.leak < 1e-12
    positions = name in ("gpt2", "opt")
    assert len(report.readers["residual stream"]) == 5 + positions
    head = model.get_output_embeddings().weight
    assert head is not model.get_input_embeddings().weight and torch.equal(head, before["lm_head.weight"])
    assert not model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert_loaded(loaded, model, other)
    unfold_(model)
    assert_same_state(model, before)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    saved = {"dtype": None, "architectures": None}
    assert {**model.config.to_dict(), **saved} == {**config, **saved}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_narrower_weights(dtype: torch.dtype, most: float) -> None:
    model, batch = tiny_models.build("llama", dtype), tiny_models.batch("llama")
    before = state_of(model)
    assert 0 < fold_residual_(model, oblique(), batch).leak < most
    unfold_(model)
    assert_same_state(model, before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma2", "'model.layers.0.input_layernorm' reads what is no sum"),  # the embedding is scaled
        ("mixtral", "'model.layers.1.input_layernorm' reads what is no sum"),  # experts are weighted
        ("bert", "'bert.encoder.layer.0.attention.output.LayerNorm' reads what is no sum"),
        ("vit", "'layers.0.layernorm_before' reads what is no sum"),
        ("t5", "'decoder.embed_tokens' and 'encoder.embed_tokens' share a weight"),  # two streams
    ],
)
def test_streams_that_something_else_writes_to(name: str, message: str) -> None:
    model = tiny_models.build(name)
    before = state_of(model)
    with pytest.raises(ValueError) as error:
        fold_residual_(model, oblique(), tiny_models.batch(name))
    assert message in str(error.value)
    assert_same_state(model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Plain(nn.Module):
    """An embedding, one layer, and whatever `tail` makes of the layer's output."""

    def __init__(self, tail: str = "") -> None:
        super().__init__()
        self.embed, self.norm, self.up = nn.Embedding(9, 16), nn.LayerNorm(16), nn.Linear(16, 16)
        self.last, self.head, self.tail = nn.LayerNorm(16), nn.Linear(16, 3), tail
        if tail == "shared":
            self.other = nn.Embedding(9, 16)
            self.other.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        written = self.up(self.norm(x))
        if self.tail == "unseen":
            x = x + torch.from_numpy(written.detach().numpy().copy())
        x = x + written * 0.5
        if self.tail == "shared":
            x = x + self.other(ids)
        out = self.head(self.last(x))
        return out + written.tanh().mean() if self.tail == "read" else out


def test_a_small_model_and_its_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, eraser = torch.arange(9), oblique()
    model = Plain().double()
    handles = reading_erased(model, eraser)
    wanted = output_of(model, ids)
    for handle in handles:
        handle.remove()
    fold_residual_(model, eraser, ids)
    assert close(output_of(model, ids), wanted, 1e-12)
    with pytest.raises(ValueError, match="folded already"):
        fold_residual_(model, eraser, ids)
    for tail, message in [
        ("read", "'up' writes to the stream and is read by 'the model' by tanh too"),
        ("shared", "'embed' and 'other' share a weight"),
        ("unseen", "'last' reads what is no sum"),
    ]:
        model = Plain(tail).double()
        before = state_of(model)
        with pytest.raises(ValueError, match=message):
            fold_residual_(model, eraser, ids)
        assert_same_state(model, before)
    model = Plain().double()
    with pytest.raises(ValueError, match="strength 1"):
        fold_residual_(model, eraser.scaled(2.0), ids)
    with pytest.raises(ValueError, match="no norm of this model reads rows of width 8"):
        fold_residual_(model, Eraser(torch.eye(8)[:, :1], torch.eye(8)[:1]), ids)
    with Scrubber({"norm": eraser}).attached(model), pytest.raises(ValueError, match="attached to this model"):
        fold_residual_(model, eraser, ids)


def test_restored_if_a_norm_would_still_read_the_concept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_models.build("gpt2"), tiny_models.batch("gpt2")
    before, tied = state_of(model), model.transformer.wte.weight
    from leace_fast.folding import _residual as residual

    norms = residual._norm_inputs
    calls: list[int] = []

    def second_wrong(*args: Any) -> dict[str, Tensor]:
        calls.append(1)
        return {name: rows + (len(calls) > 1) for name, rows in norms(*args).items()}

    monkeypatch.setattr(residual, "_norm_inputs", second_wrong)
    with pytest.raises(RuntimeError, match="'transformer.h.0.ln_1' would still read .* nothing was changed"):
        fold_residual_(model, oblique(), batch)
    assert_same_state(model, before)
    assert model.lm_head.weight is tied and model.config.tie_word_embeddings
