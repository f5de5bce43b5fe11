"""Acts on the outputs of modules: taps, alone and together."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch
from tiny_models import state_of
from torch import nn

from leace_fast.models import Site, find_sites, tap


def test_tap_sees_every_call_and_replaces():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    x, seen = torch.randn(5, 3), []

    def double(name, output):
        seen.append((name, output))
        return 2 * output if name == "1" else None

    before, clean = state_of(model), model(x)
    with tap(model, [Site("1", 3), "0"], double):
        tapped = model(x)
        model(x)
    assert [name for name, _ in seen] == ["0", "1", "0", "1"]
    assert torch.equal(seen[1][1], model[1](model[0](x)))
    assert torch.equal(tapped, model[2](2 * model[1](model[0](x))))
    assert state_of(model) == before and torch.equal(model(x), clean)


def test_taps_nest_and_come_before_other_hooks():
    norm, captured = nn.LayerNorm(3), []
    norm.register_forward_hook(lambda module, args, output: captured.append(output))

    def times(factor):
        return lambda name, output: output * factor

    with tap(norm, [""], lambda name, output: output + 1):
        with tap(norm, [""], times(2)):  # acts on what the outer one left
            both = norm(torch.zeros(3))
        one = norm(torch.zeros(3))
    assert both.tolist() == [2, 2, 2] and one.tolist() == [1, 1, 1] and norm(torch.zeros(3)).tolist() == [0, 0, 0]
    assert [output.tolist() for output in captured[:2]] == [[2, 2, 2], [1, 1, 1]]


def test_equal_taps_leave_one_by_one():
    norm = nn.LayerNorm(3)

    def add(name, output):
        return output + 1

    outer, inner = tap(norm, [""], add), tap(norm, [""], add)
    outer.__enter__()
    inner.__enter__()
    assert norm(torch.zeros(3)).tolist() == [2, 2, 2]
    outer.__exit__(None, None, None)
    assert norm(torch.zeros(3)).tolist() == [1, 1, 1]
    inner.__exit__(None, None, None)
    assert norm(torch.zeros(3)).tolist() == [0, 0, 0] and not norm._forward_hooks


@pytest.mark.parametrize("wrong", [lambda x: x[:1], lambda x: x.double(), lambda x: 3])
def test_replacements_that_do_not_fit(wrong):
    norm = nn.LayerNorm(3)
    with pytest.raises(ValueError, match="cannot become"), tap(norm, [""], lambda name, output: wrong(output)):
        norm(torch.zeros(2, 3))
    assert not norm._forward_hooks


def test_tap_refuses_unknown_sites_and_outputs_that_are_no_tensor():
    model = tiny_models.build("llama")
    before = state_of(model)
    with (
        pytest.raises(ValueError, match="nearest: model.norm"),
        tap(model, ["lm_head", "model.nrm"], lambda n, o: None),
    ):
        pass
    whole = tap(model, ["model"], lambda n, o: None)
    with pytest.raises(ValueError, match="is a BaseModelOutputWithPast, expected one float tensor"), whole:
        model(**tiny_models.batch("llama"))
    assert state_of(model) == before


def test_a_copy_of_a_tapped_model_does_not_run():
    model = nn.Sequential(nn.LayerNorm(3))
    with tap(model, ["0"], lambda name, output: output):
        twin = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="copied"):
        twin(torch.zeros(3))


@pytest.mark.parametrize("kind", ["wrapped", "in place", "inside a function"])
def test_code_compiled_before_the_tap_is_not_bypassed(kind):
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2))
    x = torch.randn(2, 3)
    if kind == "in place":
        model.compile(backend="eager")
    run = {"wrapped": lambda: torch.compile(model, backend="eager"), "in place": lambda: model}
    call = run.get(kind, lambda: torch.compile(lambda x: model(x), backend="eager"))()
    clean = call(x)
    with tap(model, ["0"], lambda name, output: output * 2):
        outer = call(x)
        with tap(model, ["0"], lambda name, output: output * 2):
            inner = call(x)
        assert torch.equal(call(x), outer)
    hidden = model[0](x)
    assert torch.equal(outer, model[1](2 * hidden)) and torch.equal(inner, model[1](4 * hidden))
    assert torch.equal(call(x), clean)


def test_the_hidden_states_of_a_tuple_are_its_first_item():
    model, batch = tiny_models.build("falcon"), tiny_models.batch("falcon")
    layers = ["transformer.h.0", "transformer.h.1"]
    assert [(site.name, site.width) for site in find_sites(model, batch, layers)] == [(n, 16) for n in layers]
    seen = {}
    with tap(model, layers, lambda name, output: seen.setdefault(name, output) * 0), torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states
    assert list(seen) == layers and seen[layers[0]].shape == hidden[1].shape
    assert seen[layers[0]].abs().max() > 0 and hidden[1].abs().max() == 0
