"""Fitted erasers of tiny models, the same as plain hooks, and how two models are compared."""

from __future__ import annotations

from functools import cache
from typing import Any

import tiny_models
import torch
from torch import Tensor, nn

from leace_fast import Eraser, Moments, find_sites, leace, record
from leace_fast.folding._agreement import output_of
from leace_fast.models import submodules

ROWS = 40


def sites_of(name: str) -> Any:
    """What can be folded: in BERT the residual reads every norm, and T5's encoder hands its last one out."""
    return {"bert": "*.intermediate", "t5": ["encoder.block.*_norm", "decoder.block.*_norm"]}.get(name, "norms")


@cache
def moments_of(name: str) -> dict[str, Moments]:
    model, batch = tiny_models.build(name), tiny_models.batch(name, ROWS)
    generator = torch.Generator().manual_seed(3)
    tokens = name not in ("t5", "vit")
    labels = torch.randint(0, 2, batch["input_ids"].shape if tokens else (ROWS,), generator=generator)
    with record(model, find_sites(model, batch, sites_of(name)), num_classes=2) as moments, torch.no_grad():
        model(**batch, concept_labels=labels)
    return moments


def erasers_of(name: str) -> dict[str, Eraser]:
    return {site: leace(moments, shrinkage=True) for site, moments in moments_of(name).items()}


def hooked(model: nn.Module, erasers: dict[str, Eraser]) -> list[Any]:
    """Plain hooks with the formula spelt out."""

    def hook(eraser: Eraser) -> Any:
        left, right = eraser.left.double(), eraser.right.double()
        mean = torch.zeros(eraser.dim, dtype=torch.float64) if eraser.mean is None else eraser.mean
        return lambda module, args, x: (x.double() - ((x.double() - mean) @ right.mT) @ left.mT).to(x.dtype)

    return [m.register_forward_hook(hook(erasers[site])) for site, m in submodules(model, erasers).items()]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def close(one: Tensor, two: Tensor, tolerance: float) -> bool:
    return float((one - two).norm() / two.norm()) < tolerance


def assert_loaded(loaded: nn.Module, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """The weights have the same bits; the output may not, as weights in a mapped file lie at any address."""
    assert_same_state(loaded, state_of(model))
    assert close(output_of(loaded, batch), output_of(model, batch), 1e-12)


def generated(model: Any, name: str) -> Tensor:
    batch = tiny_models.batch(name, rows=1)
    prompt = {key: value for key, value in batch.items() if key != "decoder_input_ids"}
    return model.generate(**prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
