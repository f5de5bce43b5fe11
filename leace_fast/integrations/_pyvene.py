"""`pyvene_config`: erasers as interventions of pyvene."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..erasers import Eraser


def pyvene_config(erasers: Mapping[str, Eraser]) -> list[dict[str, Any]]:
    """Return what `pyvene.IntervenableModel(config, model=model)` takes to erase at every site in a forward pass.

    Its `generate` intervenes either on the prompt or on the tokens that follow, never on both: to generate, attach the
    erasers instead.

    Args:
        erasers: by the name of their site, such as a `Scrubber`.

    Raises:
        ValueError: there is no eraser.

    >>> import torch
    >>> eraser = Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])
    >>> pyvene_config({"model.layers.0.norm": eraser})[0]["component"]
    'model.layers[0].norm.output'
    """
    if not erasers:
        raise ValueError("pyvene would erase nothing: got no eraser, expected at least one by the name of its site")
    return [{"component": _component(site), "intervention": _intervention(each)} for site, each in erasers.items()]


def _component(site: str) -> str:
    """pyvene's name of what a module puts out: items of lists are in brackets."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", site) + ".output"


def _intervention(eraser: Eraser) -> Callable[[Tensor, Any], Tensor]:
    return lambda base, source=None: eraser(base)
