"""Sites are found on the first sequences of a batch, and on all of it where these could show something else."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from leace_fast.models import Site, find_sites
from leace_fast.models._sequences import SEQUENCES, first_sequences
from leace_fast.models._sites import _found

WIDTH = 4


class Layers(nn.Module):
    """Two layers, and what a test puts between them; keeps the shapes that it was called with."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(2))
        self.between = between
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, bias: Tensor | None = None, flag: Any = None) -> Tensor:
        self.seen.append(tuple(x.shape))
        x = self.layers[0](x if bias is None else x + bias)
        return self.layers[1](x if self.between is None else self.between(x))


def rows(batch: int = 8, length: int = 5) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(0))


def found(model: nn.Module, example: Any, sites: Any = "norms") -> list[str]:
    return [site.name for site in find_sites(model, example, sites)]


@pytest.mark.parametrize("group", ["norms", "residual", "attention_out", "mlp_out"])
@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_few_sequences_show_the_sites_of_all(name: str, group: str) -> None:
    model, batch = tiny_models.build(name), tiny_models.batch(name, 6)

    def outcome(trace: Any) -> list[Site] | str:
        try:
            return trace()
        except ValueError as error:
            return str(error)

    assert outcome(lambda: find_sites(model, batch, group)) == outcome(lambda: _found(model, batch, [group]))


@pytest.mark.parametrize(
    "example",
    [
        rows(),
        {"x": rows()},
        {"x": rows(), "concept_labels": torch.zeros(8, 5), "flag": 8},
        {"x": rows(), "bias": torch.zeros(1, 5, WIDTH)},
        {"x": rows(), "bias": torch.zeros(5, WIDTH)},  # by position: its first axis is not the batch
        {"x": rows(8, 8), "bias": torch.zeros(8, 8, WIDTH)},
    ],
    ids=["tensor", "dict", "labels and a number", "bias of one", "bias by position", "bias a sequence"],
)
def test_two_sequences_are_enough(example: Any) -> None:
    model = Layers()
    assert found(model, example) == ["layers.0.0", "layers.1.0"]
    assert [shape[0] for shape in model.seen] == [SEQUENCES] == [2]


def test_a_bias_by_position_as_long_as_the_batch_is_cut_where_that_runs_and_whole_where_not() -> None:
    model = Layers()
    assert found(model, {"x": rows(8, 8), "bias": torch.zeros(8, WIDTH)}) == ["layers.0.0", "layers.1.0"]
    assert [shape[0] for shape in model.seen] == [2, 8], "cut it fits no sequence of 8: all of it is run"


@pytest.mark.parametrize(
    "example",
    [rows(1), rows(2), rows()[:, 0, 0], {"x": rows(1)}, {"x": rows(), "flag": [1]}, {"x": rows(), "flag": (rows(),)}],
    ids=["one", "two", "of one axis", "one, named", "a list", "tensors inside"],
)
def test_what_cannot_be_cut_is_left_whole(example: Any) -> None:
    assert first_sequences(example) is None


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_that_is_no_larger_is_run_as_it_is(batch: int) -> None:
    model = Layers()
    assert found(model, rows(batch)) == ["layers.0.0", "layers.1.0"]
    assert model.seen == [(batch, 5, WIDTH)]


def test_the_main_input_says_how_large_the_batch_is() -> None:
    batch = {"bias": torch.ones(3, 4), "input_ids": torch.ones(8, 5)}
    cut: Any = first_sequences(batch, "input_ids")
    assert {name: part.shape[0] for name, part in cut.items()} == {"bias": 3, "input_ids": 2}


class Experts(nn.Module):
    """A module that later sequences alone run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rare = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.rare(x) if len(x) > SEQUENCES else self.first(x)


class Each(nn.Module):
    """A layer that runs once a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.norm(row) for row in x])


class Squeezes(nn.Module):
    """Fails on a batch of one, as carelessly written models do."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.squeeze().ndim == 3
        return x


class AllEight(nn.Module):
    """Fails on any other batch than one of eight."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(8, -1).reshape(x.shape)[: len(x)] if len(x) == 8 else x.reshape(8, 999)


def test_where_a_module_with_weights_did_not_run_the_whole_batch_is_traced() -> None:
    model = Layers(Experts())
    assert found(model, rows(), ["between.rare"]) == ["between.rare"]
    assert [shape[0] for shape in model.seen] == [2, 8]
    model.seen.clear()
    assert found(model, rows()) == ["layers.0.0", "layers.1.0"]
    assert [shape[0] for shape in model.seen] == [2, 8], "an expert that did not run might have read a site"


def test_a_module_that_runs_once_a_sequence_is_refused_as_before() -> None:
    with pytest.raises(ValueError, match="'between.norm' ran 8 times in one forward pass"):
        find_sites(Layers(Each()), rows(), "between.norm")


def test_models_that_take_no_batch_of_one_or_need_them_all() -> None:
    model = Layers(Squeezes())
    assert found(model, rows()) == ["layers.0.0", "layers.1.0"] and [shape[0] for shape in model.seen] == [2]
    model = Layers(AllEight())
    assert found(model, rows()) == ["layers.0.0", "layers.1.0"] and [shape[0] for shape in model.seen] == [2, 8]


@pytest.mark.parametrize("track", [True, False])
def test_batch_statistics_do_not_change(track: bool) -> None:
    model = Layers(nn.Sequential(nn.Flatten(1), nn.BatchNorm1d(20, track_running_stats=track), nn.Unflatten(1, (5, 4))))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert found(model.train(), rows(), ["layers.0.0", "between.1"]) == ["layers.0.0", "between.1"]
    assert [shape[0] for shape in model.seen] == [2] and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_error_is_that_of_the_whole_batch_and_leaves_no_hook() -> None:
    model = Layers()
    with pytest.raises(RuntimeError, match="size of tensor a"):
        find_sites(model, {"x": rows(), "bias": torch.zeros(3, 3)})
    assert [shape[0] for shape in model.seen] == [2, 8]
    with pytest.raises(ValueError, match="no site 'nope'"):
        find_sites(model, rows(), "nope")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_compiled_is_not_run_with_another_batch_size() -> None:
    model = Layers()
    model.layers[0].compile(backend="eager")
    assert found(model, rows(), "layers.1.0") == ["layers.1.0"]
    assert [shape[0] for shape in model.seen] == [8]
