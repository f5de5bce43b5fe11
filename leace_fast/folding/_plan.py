"""`plan`: which erasers can be folded into which weights, and in what form; decided before any weight changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..erasers import Eraser
from ..models import tapped
from ._edits import check_weight
from ._padding import with_padding
from ._readers import Reader, Reading, readings_of


@dataclass(frozen=True)
class Plan:
    """One site to fold: its eraser in the form that its readers can take, and these readers."""

    site: str
    eraser: Eraser
    readers: tuple[Reader, ...]
    cost_ratio: float  # of the form taken over the affine eraser
    lost_offset: Literal["", "bias", "padding"] = ""  # what readers lack, or what a bias would get wrong


def plan(
    model: nn.Module,
    erasers: Mapping[str, Eraser],
    example: Mapping[str, Any] | Tensor,
    *,
    add_bias: bool,
    max_cost_ratio: float,
    reuse_bias: bool = True,
) -> list[Plan]:
    """Return what is to be folded where, after every check that can be made before weights change.

    Args:
        add_bias: readers can be given a bias.
        reuse_bias: biases that readers have can be changed.
    """
    if not erasers:
        raise ValueError("nothing to fold: no eraser was given")
    check_detached(model)
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        raise ValueError("autocast keeps rounded copies of the weights: fold outside of it")
    plans = []
    for site, reading in readings_of(model, erasers, *with_padding(model, example)).items():
        eraser = erasers[site]
        _check_foldable(model, site, reading, eraser.dim)
        lacking = next((r.module for r in reading.readers if not (add_bias or reuse_bias and r.bias)), None)
        if eraser.mean is not None and (lacking is not None or reading.scaled):
            lost, reason = "bias", f"{lacking!r}, which takes no bias"
            if reading.scaled:
                lost = "padding"
                reason = f"{reading.readers[0].module!r} after a factor, as of a padding mask, which a bias would miss"
            linear, ratio = _linear_of(site, eraser, reason, max_cost_ratio)
            plans.append(Plan(site, linear, reading.readers, ratio, lost))
        else:
            plans.append(Plan(site, eraser, reading.readers, eraser.report.cost_ratio if eraser.report else 1.0))
    return plans


def check_detached(model: nn.Module) -> None:
    """Raise ValueError where hooks would act on top of what is folded."""
    if tapped(model):
        raise ValueError(
            "erasers or recordings are attached to this model: leave the `with` block, or detach_ them, before folding"
        )


def bias_name(reader: Reader) -> str:
    """The name of a reader's bias, or the one that it would have."""
    if reader.parameter.endswith("weight"):
        return reader.bias or f"{reader.parameter.removesuffix('weight')}bias"
    return reader.bias or f"{reader.parameter}_bias"


def _check_foldable(model: nn.Module, site: str, reading: Reading, dim: int) -> None:
    """Raise ValueError unless a site is read by weights of its width alone."""
    if reading.others or not reading.readers:
        others = "; ".join(reading.others) or "no linear layer"
        raise ValueError(
            f"{site!r} cannot be folded: it is {'also ' if reading.readers else ''}read by {others}; only products "
            "with plain weights of their own can take an eraser: leave this site out, or attach the scrubber"
        )
    for reader in reading.readers:
        width = check_weight(model, reader.parameter).shape[reader.axis]
        if width != dim:
            raise ValueError(f"{reader.module!r} reads {site!r} at width {width}, its eraser has {dim}")


def _linear_of(site: str, eraser: Eraser, reason: str, max_cost_ratio: float) -> tuple[Eraser, float]:
    """The map without an offset of a site where it has no place, and its cost over that of the affine one."""
    try:
        ratio, linear = eraser.linear_cost_ratio, eraser.without_offset(max_cost_ratio)
    except ValueError as error:
        raise ValueError(
            f"{site!r} is read by {reason}, and {error}; or attach the scrubber, which keeps every offset"
        ) from error
    return linear, ratio
