"""Concept scrubbing: against a slow reference, at a bounded cost, and what bad input says."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

import leace_fast as lf
from leace_fast import Scrubber, leace, scrub
from leace_fast.record import record
from leace_fast.sites import find_sites

CLASSES = 3
ARCHITECTURES = models.ARCHITECTURES


def labelled_batches(name: str, count: int = 3, rows: int = 4) -> list[dict[str, Tensor]]:
    batches = []
    for seed in range(count):
        batch = models.batch(name, rows, seed)
        labels = (batch["input_ids"] if "input_ids" in batch else torch.arange(rows)) % CLASSES
        if name == "t5":
            labels = (torch.arange(rows) + seed) % CLASSES  # of whole sequences: the decoder's tokens have none
        batches.append({**batch, "concept_labels": labels})
    return batches


def run(model: Any, batch: dict[str, Tensor], **labels: Any) -> Any:
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "concept_labels"}, **labels)


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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sequential_is_the_slow_reference(name):
    model, batches = models.build(name), labelled_batches(name)
    sites = [site.name for site in find_sites(model, batches[0])]
    clean = run(model, batches[0])[0]
    scrubber = scrub(model, batches)
    assert list(scrubber) == sites
    assert torch.equal(run(model, batches[0])[0], clean), "the model is left as it was"
    for site, wanted in reference(model, batches, sites).items():
        assert close(scrubber[site], wanted), site


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_means_of_the_classes_coincide_in_the_scrubbed_model(name):
    model, batches = models.build(name), labelled_batches(name)
    scrubber = scrub(model, batches)
    with scrubber.attached(model), record(model, list(scrubber), num_classes=CLASSES) as moments:
        for batch in batches:
            run(model, batch, concept_labels=batch["concept_labels"])
    for site, each in moments.items():
        gap = each.class_mean_differences.abs().max()
        assert gap < 1e-9 * each.covariance.diagonal().sqrt().max(), site
