"""A record of what was done to a model's weights, for files that are passed on without their erasers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..erasers import Eraser, digest_of_eraser, digest_of_erasers
from ..models import Identity, bare_name
from ._plan import Plan

KEY = "leace_fast"  # of metadata that holds a record as JSON
LINEAR, AFFINE = "W' = W - W L R", "W' = W - W L R, b' = b + W L R mu"
WRITTEN = "W' = W - L R W, one b' = b - L R (b - mu)"


def record_of(model: nn.Module, plans: Iterable[Plan], erasers: Mapping[str, Eraser], way: str) -> dict[str, Any]:
    """Return what is about to be done to a model, while it is still the model that it is done to.

    Args:
        model: clean, in no wrapper.
        plans: what is folded where.
        erasers: that were given, by site; digests are theirs, whatever form a plan takes of them.
        way: "fold", or "lora".

    Returns:
        JSON with the keys `leace_fast` (a version), `way`, `base_model` (name, revision, SHA-256 of the weights),
        `erasers` (a digest of all), and `sites`, each with its eraser's digest, method, rank, operation, and layers.
    """
    sites = {
        bare_name(plan.site): {
            **_facts(erasers[plan.site], (reader.module for reader in plan.readers)),
            "operation": LINEAR if plan.eraser.mean is None else AFFINE,
            "offset": "lost" if plan.lost_offset else "none" if plan.eraser.mean is None else "kept",
        }
        for plan in plans
    }
    return _complete(model, sites, way)


def record_of_stream(model: nn.Module, stream: str, eraser: Eraser, writers: Iterable[str]) -> dict[str, Any]:
    """Return such a record of an eraser that is about to be folded into all that writes to the residual stream.

    Args:
        model: clean, in no wrapper.
        stream: what the stream is called.
        eraser: of all its positions.
        writers: names of modules.
    """
    offset = "none" if eraser.mean is None else "kept"
    facts = {**_facts(eraser, writers), "operation": WRITTEN, "offset": offset}
    return _complete(model, {stream: facts}, "fold_residual")


def _facts(eraser: Eraser, layers: Iterable[str]) -> dict[str, Any]:
    names = list(dict.fromkeys(map(bare_name, layers)))
    return {"eraser": digest_of_eraser(eraser), "method": eraser.method, "rank": eraser.rank, "layers": names}


def _complete(model: nn.Module, sites: Mapping[str, Mapping[str, Any]], way: str) -> dict[str, Any]:
    identity = Identity.of(model)
    return {
        "leace_fast": __version__,
        "way": way,
        "base_model": {"name": identity.model_id, "revision": identity.revision, "sha256": digest_of_weights(model)},
        "erasers": digest_of_erasers({site: facts["eraser"] for site, facts in sites.items()}),
        "sites": sites,
    }


def digest_of_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters, each with its name, dtype and shape.

    Wrappers, tied names and the device do not count. Where weights are not in memory, or not whole, it is "".

    >>> digest_of_weights(nn.Linear(2, 1)) == digest_of_weights(nn.Linear(2, 1))
    False
    """
    sha = hashlib.sha256()
    for name, parameter in sorted((bare_name(name), each) for name, each in model.named_parameters()):
        if parameter.is_meta or type(parameter.data) is not torch.Tensor:  # sharded, or packed
            return ""
        part = parameter.detach().cpu().contiguous()
        sha.update(f" {name} {part.dtype} {tuple(part.shape)} ".encode())
        sha.update(part.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
