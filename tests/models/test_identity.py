"""Erasers know their model, and refuse another."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from leace_fast import Scrubber, scrub
from leace_fast.models import Identity


def labelled(name: str) -> list[dict[str, torch.Tensor]]:
    return [{**tiny_models.batch(name, 6, seed), "concept_labels": torch.arange(6) % 3} for seed in range(2)]


@pytest.fixture(scope="module")
def llama():
    return tiny_models.build("llama"), scrub(tiny_models.build("llama"), labelled("llama"))


def test_a_reloaded_scrubber_does_the_same_in_generate_and_loss(llama, tmp_path):
    model, scrubber = llama
    scrubber.save_pretrained(tmp_path)
    loaded = Scrubber.from_pretrained(tmp_path)
    batch = tiny_models.batch("llama", 2)
    found = []
    for each in (scrubber, loaded):
        with each.attached(model), torch.no_grad():
            loss = model(**batch, labels=batch["input_ids"]).loss
            found.append((loss, model.generate(**batch, max_new_tokens=5, do_sample=False)))
    with torch.no_grad():
        clean = model(**batch, labels=batch["input_ids"]).loss
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert (clean - found[0][0]).abs() > 1e-4
    assert loaded.identity == scrubber.identity and loaded.config["hidden_size"] == tiny_models.WIDTH


def test_folded_erasers_do_the_same_in_generate_and_loss(llama):
    model, scrubber = tiny_models.build("llama"), llama[1]
    batch = tiny_models.batch("llama", 2)
    with scrubber.attached(model), torch.no_grad():
        wanted = model(**batch, labels=batch["input_ids"]).loss, model.generate(**batch, max_new_tokens=5)
    scrubber.fold_(model, batch, add_bias=True)
    with torch.no_grad():
        found = model(**batch, labels=batch["input_ids"]).loss, model.generate(**batch, max_new_tokens=5)
    assert torch.allclose(found[0], wanted[0], rtol=1e-9) and torch.equal(found[1], wanted[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act: 'silu' there, 'gelu' here"),
        ({"rms_norm_eps": 0.5}, "rms_norm_eps: 1e-06 there"),
    ],
)
def test_another_configuration_is_refused(llama, change, message):
    other = tiny_models.build("llama")
    for name, value in change.items():
        setattr(other.config, name, value)
    with pytest.raises(ValueError, match=f"fitted on another model \\({message}"), llama[1].attached(other):
        pass
    with Scrubber(dict(llama[1])).attached(other):
        pass


def test_what_does_not_make_another_model(llama):
    other = tiny_models.build("llama", torch.float32)
    other.config.use_cache, other.config.pad_token_id = False, 3
    with llama[1].attached(other):
        pass


@pytest.mark.parametrize(
    ("one", "two", "different"),
    [
        (Identity("a/b"), Identity("a/c"), ["model: 'a/b' there, 'a/c' here"]),
        (Identity("a/b", "1"), Identity("a/b", "2"), ["revision: '1' there, '2' here"]),
        (Identity("/home/me/model"), Identity("a/c"), []),
        (Identity(), Identity("a/c", "2", {"x": 1}), []),
    ],
)
def test_differences(one, two, different):
    assert one.differences(two) == different
