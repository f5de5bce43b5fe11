"""What a scrub says to bad input."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from labelled_models import Blocks, blocks_batches, labelled_batches

from leace_fast import evaluate, scrub


def with_labels(change: Any, index: int = 1) -> list[dict[str, Any]]:
    batches: list[dict[str, Any]] = [dict(batch) for batch in labelled_batches("llama")]
    batches[index]["concept_labels"] = change(batches[index]["concept_labels"])
    return batches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": "model.layers.7.input_layernorm"}, "no site 'model.layers.7.input_layernorm'.*the nearest: model"),
        ({"method": "leac"}, "unknown method 'leac'.*did you mean 'leace'"),
        ({"mode": "both"}, 'mode is \'both\', expected "sequential" or "parallel"'),
        ({"buffer": "8 apples"}, "'8 apples' is no size"),
        ({"batches": []}, "got no batches"),
        ({"batches": with_labels(lambda y: y[:, 1:])}, r"in batch 1: concept_labels has shape \(4, 6\), and attention"),
        ({"batches": with_labels(lambda y: y[1:])}, r"in batch 1: concept_labels has shape \(3, 7\)"),
        ({"batches": with_labels(lambda y: None)}, 'batch 1 has no "concept_labels"'),
        ({"batches": with_labels(lambda y: {"a": y})}, "batch 1 has the concepts a, expected concept_labels"),
        ({"batches": with_labels(lambda y: y + 3 * (y == 2))}, "of the classes 0 to 5 of concept_labels, 3, 4 never"),
        ({"num_classes": 5}, "of the classes 0 to 4 of concept_labels, 3, 4 never occur"),
        ({"num_classes": 2}, "in batch 0: concept_labels holds the class 2, expected 0 to 1"),
        (
            {"batches": with_labels(lambda y: y - 1)},
            "in batch 1: concept_labels holds the class -1, expected 0 or more",
        ),
        ({"batches": iter(labelled_batches("llama")), "mode": "parallel"}, "cannot count the classes of a stream"),
        (
            {"batches": labelled_batches("llama"), "mode": "parallel", "num_classes": 4},
            "of the classes 0 to 3 of .*, 3",
        ),
    ],
)
def test_bad_input(arguments, message):
    model = tiny_models.build("llama")
    with pytest.raises(ValueError, match=message):
        scrub(
            model,
            arguments.pop("batches", None) or labelled_batches("llama")[: 0 if "got no" in message else 9],
            **arguments,
        )
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.modules())


def test_what_is_no_model_no_batches_and_no_eraser():
    model, batches = tiny_models.build("llama"), labelled_batches("llama")
    for act in (scrub, evaluate):
        with pytest.raises(TypeError, match="model is a str, expected a module: load it first"):
            act("org/model", batches)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"batches is a dict, expected several batches: for one, pass \[batch\]"):
            act(model, batches[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the method returned a float at 'model.layers.0.input_layernorm', expected an"):
        scrub(model, batches, method=lambda moments: 1.0)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_activations_that_are_not_finite_are_named(mode):
    model, batches = Blocks(3), blocks_batches()
    batches[2]["x"][0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="1 activations at 'layers.0.0' are not finite in batch 2"):
        scrub(model, batches, mode=mode)
