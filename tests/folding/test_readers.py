"""What reads a site and what writes to the residual stream."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from leace_fast.folding._readers import Reader, Reading, readings_of
from leace_fast.folding._writers import Stream, Writer
from leace_fast.models import find_sites


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_products_are_those_of_the_modules_that_get_the_output(name: str) -> None:
    """Two ways to the same: operations on the rows, and modules with weights of their width that are given them."""
    model, batch = tiny_models.build(name), tiny_models.batch(name)
    sites = find_sites(model, batch)
    readings = readings_of(model, [site.name for site in sites], batch)
    for site in sites:
        readers = readings[site.name].readers
        assert {reader.module for reader in readers} == set(site.readers) and len(set(readers)) == len(readers)
        for reader in readers:
            parameters = dict(model.named_parameters())
            assert parameters[reader.parameter].shape[reader.axis] == site.width
            assert reader.axis == (-2 if name == "gpt2" else -1)
            assert reader.bias is None or reader.bias in parameters
    assert all(bool(reading.others) for reading in readings.values()) == (name == "bert")


def test_names_of_biases_and_experts() -> None:
    model, batch = tiny_models.build("mixtral"), tiny_models.batch("mixtral")
    site = "model.layers.0.post_attention_layernorm"
    expected = (
        Reader("model.layers.0.mlp.experts", "model.layers.0.mlp.experts.gate_up_proj", -1),
        Reader("model.layers.0.mlp.gate", "model.layers.0.mlp.gate.weight", -1),
    )
    assert readings_of(model, [site], batch)[site] == Reading(expected, ())


class Reads(nn.Module):
    """A norm, and one way to read it."""

    def __init__(self, way: Any) -> None:
        super().__init__()
        self.norm, self.up, self.way = nn.LayerNorm(4), nn.Linear(4, 4), way

    def forward(self, x: Tensor) -> Any:
        return self.way(self, self.norm(x))


UP = (Reader("up", "up.weight", -1, "up.bias"),)
TURNED = (Reader("up", "up.weight", -2, "up.bias"),)
SHARED = "'up', whose weight also serves"
PADDING = torch.tensor([[True, False, False], [False, False, True]])[..., None]
WAYS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "twice": (lambda m, x: m.up(x) + m.up(x.reshape(-1, 4)).reshape(x.shape), UP, ()),
    "cast and back": (lambda m, x: m.up(x.float().double()), UP, ()),
    "some rows": (lambda m, x: m.up(x[:, 1:]), UP, ()),
    "gathered rows": (lambda m, x: m.up(x[torch.tensor([1, 0, 1])]), UP, ()),
    "rows put together": (lambda m, x: m.up(torch.cat([x, x])), UP, ()),
    "axes exchanged": (lambda m, x: m.up(x.transpose(0, 1).contiguous()), UP, ()),
    "the weight turned": (lambda m, x: x @ m.up.weight + m.up.bias, TURNED, ()),
    "from the other side": (lambda m, x: m.up.weight @ x[0].mT, UP, ()),
    "a weight cast": (lambda m, x: x.float() @ m.up.weight.float().mT, UP, ()),
    "its shape only": (lambda m, x: m.up(x) + torch.zeros_like(x), UP, ()),
    "added": (lambda m, x: m.up(x) + x, UP, ("'the model' by add",)),
    "changed in place": (lambda m, x: m.up(x.mul_(2)), UP, ("'the model' by mul_",)),
    "columns": (lambda m, x: m.up(x)[..., :2] @ x[..., :2].mT, UP, ("'the model' by bmm",)),
    "columns exchanged": (lambda m, x: m.up(x[..., [3, 2, 1, 0]]), (), ("'the model' by index",)),
    "columns selected": (lambda m, x: m.up(x.index_select(-1, torch.arange(4))), (), ("'the model' by index_select",)),
    "a computed weight": (lambda m, x: x @ (m.up.weight * 2), (), ("'the model' by mm",)),
    "a weight used up": (
        lambda m, x: m.up(x) + m.up.weight.sum(),
        UP,
        ("'up', whose weight also serves 'the model' by sum",),
    ),
    "times its norm": (lambda m, x: m.up(x * x.norm(dim=-1, keepdim=True)), UP, ("'the model' by linalg_vector_norm",)),
    "times its first column": (lambda m, x: m.up(x * x[..., :1]), (), ("'the model' by mul",)),
    "times columns": (lambda m, x: m.up(x * torch.arange(4.0)), (), ("'the model' by mul",)),
    "times itself": (lambda m, x: m.up(x * x), (), ("'the model' by mul",)),
    "times a weight": (lambda m, x: m.up(x * m.up.weight[:1, :1]), (), ("'the model' by mul",)),
    "filled with ones": (lambda m, x: m.up(x.masked_fill(PADDING, 1.0)), (), ("'the model' by masked_fill",)),
    "handed out": (lambda m, x: (m.up(x), x), UP, ("the output of the model",)),
    "never": (lambda m, x: m.up(torch.ones(2, 4).double()), (), ()),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_read(way: str) -> None:
    read, readers, others = WAYS[way]
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    reading = readings_of(Reads(read).double(), ["norm"], x)["norm"]
    assert reading.others == others
    assert reading.readers == readers


SCALED: dict[str, Any] = {
    "a mask": lambda m, x: m.up(x * PADDING),
    "on the other side": lambda m, x: m.up((PADDING.float() * x).to(x.dtype)),
    "filled with zeros": lambda m, x: m.up(x.masked_fill(PADDING, 0.0)),
    "a number": lambda m, x: m.up(2 * x),
    "one of two times": lambda m, x: m.up(x) + m.up(x * PADDING),
}


@pytest.mark.parametrize("way", SCALED)
def test_rows_times_a_number_are_still_read(way: str) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    assert readings_of(Reads(SCALED[way]).double(), ["norm"], x)["norm"] == Reading(UP, (), scaled=True)


def test_what_one_of_two_examples_shows_is_seen() -> None:
    model = Reads(lambda m, x: m.up(x * PADDING) if len(x) == 2 else m.up(x)).double()
    one, two = (torch.randn(rows, 3, 4, dtype=torch.float64) for rows in (1, 2))
    assert readings_of(model, ["norm"], one)["norm"] == Reading(UP, ())
    assert readings_of(model, ["norm"], two, one)["norm"] == Reading(UP, (), scaled=True)


def test_sites_that_run_never_or_twice_or_give_no_tensor() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="'norm' ran more than once"):
        readings_of(Reads(lambda m, x: m.up(m.norm(x))), ["norm"], x)
    with pytest.raises(ValueError, match="'up' cannot be a site: the example did not run it"):
        readings_of(Reads(lambda m, x: x.sum()), ["up"], x)
    with pytest.raises(ValueError, match="the output of '' is a tuple"):
        readings_of(Reads(lambda m, x: (x, x)), [""], x)
    model = Reads(lambda m, x: m.up(x))
    with pytest.raises(ValueError, match="no site 'nrom'"):
        readings_of(model, ["nrom"], x)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_writers_of_a_stream() -> None:
    model, batch = tiny_models.build("gpt2"), tiny_models.batch("gpt2")
    stream = Stream(model, 16)
    stream.run(batch)
    writers, offset = stream.writers()
    assert offset == Writer("transformer.wpe", "transformer.wpe.weight", True)
    layers = [f"transformer.h.{i}.{name}.c_proj" for i in range(2) for name in ("attn", "mlp")]
    assert {writer.module for writer in writers if not writer.is_table} == set(layers)
    assert {writer.axis for writer in writers} == {-1} and len(writers) == 6
    assert stream.heads(writers) == [("lm_head.weight", "transformer.wte.weight")]
    assert set(stream.norms) == {*(f"transformer.h.{i}.ln_{j}" for i in range(2) for j in (1, 2)), "transformer.ln_f"}
