"""Concept scrubbing against a slow reference, in both modes."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from labelled_models import CLASSES, Blocks, blocks_batches, labelled_batches, run
from torch import Tensor, nn

import leace_fast as lf
from leace_fast import Scrubber, leace, scrub
from leace_fast.models import find_sites, record


def reference(model: nn.Module, batches: list[dict[str, Tensor]], sites: list[str]) -> dict[str, lf.Eraser]:
    """The whole hooked model once for every site."""
    erasers: dict[str, lf.Eraser] = {}
    for site in sites:
        with record(model, [site], num_classes=CLASSES) as moments:
            for batch in batches:
                labels = {"concept_labels": batch["concept_labels"]}
                if erasers:
                    with Scrubber(erasers).attached(model):
                        run(model, batch, **labels)
                else:
                    run(model, batch, **labels)
        erasers[site] = leace(moments[site])
    return erasers


def close(one: lf.Eraser, two: lf.Eraser) -> bool:
    """Equal maps: the factors themselves are unique up to a change of basis."""
    x = torch.randn(50, one.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = x.abs().max() + (two.mean.abs().max() if two.mean is not None else 0)
    return bool(one.rank == two.rank and (one(x) - two(x)).abs().max() < 1e-9 * scale)


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_sequential_is_the_slow_reference(name):
    model, batches = tiny_models.build(name), labelled_batches(name)
    sites = [site.name for site in find_sites(model, batches[0])]
    clean = run(model, batches[0])[0]
    scrubber = scrub(model, batches)
    assert list(scrubber) == sites
    assert torch.equal(run(model, batches[0])[0], clean), "the model is left as it was"
    for site, wanted in reference(model, batches, sites).items():
        assert close(scrubber[site], wanted), site


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_means_of_the_classes_coincide_in_the_scrubbed_model(name):
    model, batches = tiny_models.build(name), labelled_batches(name)
    scrubber = scrub(model, batches)
    with scrubber.attached(model), record(model, list(scrubber), num_classes=CLASSES) as moments:
        for batch in batches:
            run(model, batch, concept_labels=batch["concept_labels"])
    for site, each in moments.items():
        gap = each.class_mean_differences.abs().max()
        assert gap < 1e-9 * each.covariance.diagonal().sqrt().max(), site


@pytest.mark.parametrize("name", ["llama", "bert", "falcon"])  # a Falcon layer returns a tuple
@pytest.mark.parametrize("sites", ["residual", "attention_out", ("norms", "residual", "mlp_out")])
def test_other_sites_too(name, sites):
    if name == "falcon" and "mlp_out" in sites:
        sites = ("norms", "residual")  # adds to the MLP's output in place, which the reference cannot record
    model, batches = tiny_models.build(name), labelled_batches(name)
    names = [site.name for site in find_sites(model, batches[0], sites)]
    scrubber = scrub(model, batches, sites)
    assert list(scrubber) == names and len(names) >= 2
    for site, wanted in reference(model, batches, names).items():
        assert close(scrubber[site], wanted), site


@pytest.mark.parametrize("kind", ["plain", "in place", "skip", "all"])
def test_models_whose_layers_are_read_late(kind):
    model, batches = Blocks(4, kind), blocks_batches()
    sites = [site.name for site in find_sites(model, batches[0]["x"], ["norms", "norm"])]
    scrubber = scrub(model, batches, ["norms", "norm"])
    assert len(sites) == 5 and list(scrubber) == sites
    for site, wanted in reference(model, batches, sites).items():
        assert close(scrubber[site], wanted), site


@pytest.mark.parametrize("kind", ["state", "random"])
def test_a_model_that_cannot_be_resumed_is_refused(kind):
    model, batches = Blocks(3, kind), blocks_batches()
    with pytest.raises(ValueError, match=r"gives other activations at 'layers.1.0' than one that runs through"):
        scrub(model, batches)
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in model.modules())
    assert len(scrub(model, batches, mode="parallel")) == 3


@pytest.mark.parametrize("buffer", [0, "1kB", "8GiB"])
def test_the_buffer_changes_no_bit(buffer):
    model, batches = tiny_models.build("llama", torch.bfloat16), labelled_batches("llama")
    wanted = scrub(model, batches)
    for site, eraser in scrub(model, batches, buffer=buffer).items():
        assert torch.equal(eraser.left, wanted[site].left) and torch.equal(eraser.right, wanted[site].right)


def test_parallel_is_one_record():
    model, batches = tiny_models.build("llama"), labelled_batches("llama")
    with record(model, num_classes=CLASSES) as moments:
        for batch in batches:
            run(model, batch, concept_labels=batch["concept_labels"])
    scrubber = scrub(model, batches, mode="parallel")
    assert list(scrubber) == list(moments)
    assert all(torch.equal(scrubber[site].left, leace(each).left) for site, each in moments.items())
    stream = scrub(model, iter(batches), mode="parallel", num_classes=CLASSES)
    assert all(torch.equal(stream[site].left, scrubber[site].left) for site in scrubber)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_several_concepts_are_erased_together(mode):
    model, batches = tiny_models.build("llama"), labelled_batches("llama", 6)
    both = []
    for batch in batches:
        ids = batch["input_ids"]
        parity = (ids // CLASSES % 2).masked_fill(ids % 5 == 0, -100)
        both.append({**batch, "concept_labels": {"remainder": ids % CLASSES, "parity": parity}})
    scrubber = scrub(model, both, mode=mode)
    first = next(iter(scrubber))
    assert scrubber[first].rank == CLASSES - 1 + 1
    for name, count in (("remainder", CLASSES), ("parity", 2)):
        with scrubber.attached(model), record(model, list(scrubber), num_classes=count) as moments:
            for batch in both:
                run(model, batch, concept_labels=batch["concept_labels"][name])
        gaps = [each.class_mean_differences.abs().max() for each in moments.values()]
        assert max(gaps[: 1 if mode == "parallel" else None]) < 1e-9
        assert mode == "sequential" or max(gaps) > 1e-3


def test_real_valued_concepts():
    model, batches = Blocks(3), blocks_batches()
    for batch in batches:
        batch["concept_labels"] = batch["x"][..., :1] ** 2
    scrubber = scrub(model, batches)
    with scrubber.attached(model), record(model, list(scrubber), target_dim=1) as moments:
        for batch in batches:
            run(model, batch, concept_labels=batch["concept_labels"])
    assert all(each.cross_covariance.abs().max() < 1e-12 for each in moments.values())
