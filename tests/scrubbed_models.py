"""Tiny models with random erasers at their sites, and what they return."""

from __future__ import annotations

from typing import Any

import tiny_models
import torch
from torch import Tensor, nn

from leace_fast import Eraser, Scrubber, find_sites

FIRST, LAST = "model.layers.0.input_layernorm", "model.layers.1.post_attention_layernorm"  # of the Llama


def eraser_of(site: str, rank: int = 2, dim: int = tiny_models.WIDTH) -> Eraser:
    """A random projection, another at each site."""
    generator = torch.Generator().manual_seed(len(site) + sum(map(ord, site)))
    left = torch.linalg.qr(torch.randn(dim, rank, generator=generator, dtype=torch.float64)).Q
    return Eraser(left, left.mT, torch.randn(dim, generator=generator, dtype=torch.float64))


def scrubber_of(model: nn.Module, batch: dict[str, Tensor]) -> Scrubber:
    return Scrubber({site.name: eraser_of(site.name) for site in find_sites(model, batch)})


def outputs_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch)[0]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
