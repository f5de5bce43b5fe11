"""Labelled batches for tiny models, and blocks with a residual stream."""

from __future__ import annotations

from typing import Any

import tiny_models
import torch
from torch import Tensor, nn

CLASSES = 3


def labelled_batches(name: str, count: int = 3, rows: int = 4) -> list[dict[str, Tensor]]:
    batches = []
    for seed in range(count):
        batch = tiny_models.batch(name, rows, seed)
        labels = (batch["input_ids"] if "input_ids" in batch else torch.arange(rows)) % CLASSES
        if name == "t5":
            labels = (torch.arange(rows) + seed) % CLASSES  # of whole sequences: the decoder's tokens have none
        batches.append({**batch, "concept_labels": labels})
    return batches


def run(model: Any, batch: dict[str, Tensor], **labels: Any) -> Any:
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "concept_labels"}, **labels)


class Blocks(nn.Module):
    """Blocks with a residual stream, in variants that make replaying hard."""

    def __init__(self, depth: int = 3, kind: str = "plain", width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.count = 0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x, first = x + 0, None
        everything = []
        for index, layer in enumerate(self.layers):
            change = layer(x)
            if self.kind == "in place":
                x += change
            elif self.kind == "skip":
                first = change if first is None else first
                x = x + change + 0.5 * first
            elif self.kind == "all":
                everything.append(change)
                x = x + change
            elif self.kind == "state" and index == 0:
                self.count += 1
                x = x + change * self.count
            elif self.kind == "random" and index == 0:
                x = x + change * torch.rand(())
            else:
                x = x + change
        return self.norm(x + sum(everything))


def blocks_batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(6, 5, 8, generator=generator, dtype=torch.float64),
            "concept_labels": torch.randint(0, CLASSES, (6, 5), generator=generator),
        }
        for _ in range(count)
    ]
