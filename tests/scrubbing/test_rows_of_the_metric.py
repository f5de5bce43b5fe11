"""The rows on which `scrub` measures least change: all, the labelled ones, and those of neutral batches."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from leace_fast import Moments, leace, scrub

DIM = 6


def batches(seed: int, labels: bool) -> list[dict[str, torch.Tensor]]:
    """Rows of which one in three has no label; those that have none are spread otherwise."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(4):
        x = torch.randn(8, 30, DIM, generator=generator)
        y = torch.randint(3, (8, 30), generator=generator) - 1
        x = torch.where(y[..., None] < 0, x * torch.arange(1, DIM + 1), x + y[..., None] * torch.eye(DIM)[0])
        mask = torch.rand(8, 30, generator=generator) < 0.8
        batch = {"x": x * (1 + 4 * seed), "attention_mask": mask.long()}
        made.append(batch | ({"concept_labels": y.masked_fill(y < 0, -100)} if labels else {}))
    return made


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.linear(self.first(x))


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize(("metric", "neutral"), itertools.product(["all", "labelled"], [False, True]))
def test_the_rows_that_count_in_the_metric(mode, metric, neutral):
    model, fit, ordinary = Model(), batches(0, labels=True), batches(1, labels=False) if neutral else []
    moments, rows = Moments(DIM, 2), Moments(DIM)
    for batch in (*fit, *ordinary):
        x, mask = model.first(batch["x"]).detach(), batch["attention_mask"]
        y = batch.get("concept_labels")
        if y is not None:
            moments.update(x, y, mask=mask)
        rows.update(x, mask=mask if y is None or metric == "all" else mask & (y != -100))
    wanted = leace(moments, metric=rows)
    (eraser,) = scrub(model, fit, sites="first", mode=mode, metric=metric, neutral=ordinary, num_classes=2).values()
    torch.testing.assert_close(eraser.left @ eraser.right, wanted.left @ wanted.right, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(eraser.mean, wanted.mean, rtol=1e-3, atol=1e-3)
