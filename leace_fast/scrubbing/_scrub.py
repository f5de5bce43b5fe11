"""`scrub`: erase a concept at every site of a model, each eraser fitted on what the earlier ones left."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from .._progress import Track, progress_bars
from .._warnings import once
from ..methods import moments_method
from ..models import GROUPS, Inside, Site, as_before, check_inputs, describe
from ._buffer import Buffer
from ._concepts import Classes, Concepts
from ._job import Fit, Job
from ._parallel import scrub_in_parallel
from ._scrubber import Scrubber
from ._sequential import scrub_in_sequence


@torch.inference_mode(False)
@once()
def scrub(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    sites: str | Iterable[str] | Iterable[Site] = "norms",
    method: str | Fit = "leace",
    mode: Literal["sequential", "parallel"] = "sequential",
    buffer: int | str = "8GiB",
    *,
    num_classes: Classes = None,
    groups: str = GROUPS,
    metric: Literal["all", "labelled"] = "all",
    neutral: Iterable[Mapping[str, Any]] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    track: Track | None = None,
) -> Scrubber:
    """Fit an eraser at each site of a model on labelled batches, and return them as a `Scrubber`.

    In sequential mode each site is fitted on activations that all earlier erasers have acted on, as they do when the
    scrubber is attached: the classes' means then coincide at every site of the scrubbed model. Each batch's forward
    pass waits at a site until its eraser is fitted and then goes on from there, so that all of it costs about one
    pass, whatever the depth. In parallel mode one pass over any number of batches fits all sites on the clean model;
    behind the first site, the scrubbed model then meets activations that no eraser was fitted on.

    Args:
        model: any module; it is left as it was. Of one that DataParallel, PEFT or the like wraps, the model inside is
            run.
        batches: the model's inputs by name, with `concept_labels`: integers (batch, length) with -100 for tokens to
            leave out, or (batch,) for whole sequences; real-valued with one axis more; or several such concepts by
            name, whose union is erased. Tokens that `attention_mask` (batch, length) masks are left out. Where they
            have `concept_groups`, integers (batch,) or (batch, length) that number the text, speaker or module of each
            sequence or token, each eraser's report says what to expect of others.
        sites: as in `find_sites`; or what it returned.
        method: a name in `METHODS` or a function from `Moments` (several concepts: a list of them) to `Eraser`; one
            that takes `metric` is given it. `functools.partial(leace, contrasts=5)` sets an option.
        mode: "sequential" or "parallel".
        buffer: memory in which passes wait, in bytes or such as "8GiB"; beyond it, a temporary file. Sequential only.
        num_classes: number of classes, by name for several concepts; None to take it from the labels, which a stream
            that can be read once does not allow in parallel mode.
        groups: the name of the batches' entry of groups, if it has another.
        metric: the rows on which "least change" is measured, by methods that have a metric: "all" that
            `attention_mask` keeps, labelled or not, or those that are "labelled". Where labels are few or of one kind
            of text, a model that was scrubbed on these alone may lose much on all other text.
        neutral: further batches of the model's inputs, of ordinary text, that count in the metric alone.
        checkpoint: a folder in which each fitted eraser (parallel: the statistics, every 64 batches) is kept; the same
            call goes on from there after an interruption, to the same bits as without one. It is known by all of the
            model's bytes, the data, and the method's code or its attribute `checkpoint_name`; other calls are refused.
        track: `track(items, stage)` returns the items and may show progress; None for bars on a terminal.

    Raises:
        ValueError: unknown sites or options, labels that do not fit, a class that never occurs, activations that are
            not finite, a checkpoint of another call, or one that would not know this call again; each says where.
        TypeError: labels are no tensors, or the model, the batches or what the method returns is something else.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, section 6 (concept scrubbing).

    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2))
    ...     def forward(self, x):
    ...         for layer in self.layers:
    ...             x = x + layer(x)
    ...         return x
    >>> batches = [{"x": torch.randn(8, 5, 4), "concept_labels": torch.arange(8) % 2} for _ in range(3)]
    >>> scrub(Model(), batches)
    Scrubber(2 sites: leace, rank 1)
    """
    check_inputs(model, batches)
    if mode not in ("sequential", "parallel"):
        raise ValueError(f'mode is {mode!r}, expected "sequential" or "parallel"')
    if metric not in ("all", "labelled"):
        raise ValueError(f'metric is {metric!r}, expected "all" or "labelled"')
    inside = Inside(model)
    fit = method if callable(method) else moments_method(method)
    facts = {"mode": mode, "method": _name(method), "metric": metric, "groups": groups}
    job = Job(
        inside.model,
        fit,
        Concepts(num_classes),
        track or progress_bars(),
        checkpoint or None,
        facts,
        neutral=_batches(neutral),
        all_rows=metric == "all",
        groups=groups,
    )
    sites = inside.sites(sites)
    with as_before(inside.model):
        if mode == "parallel":
            erasers = scrub_in_parallel(job, batches, sites)
        else:
            with Buffer(buffer) as store:
                erasers = scrub_in_sequence(job, batches, sites, store)
    named = {inside.given(site): eraser for site, eraser in erasers.items()}
    return Scrubber.of_model(inside.model, named)._knowing(job.seen)


def _name(method: str | Fit) -> str:
    """The name of a method, with the options that `functools.partial` has set."""
    if isinstance(method, str):
        return method
    name, options = getattr(method, "__name__", "custom"), ""
    if isinstance(method, functools.partial):
        name = getattr(method.func, "__name__", "custom")
        options = ", ".join(f"{key}={value!r}" for key, value in sorted(method.keywords.items()))
    return f"{name}({options})" if options else name


def _batches(neutral: Any) -> Any:
    """Neutral batches, none where there are none; TypeError for one batch in the place of many."""
    if isinstance(neutral, (Mapping, torch.Tensor)):
        raise TypeError(f"neutral is {describe(neutral)}, expected several batches: for one, pass [batch]")
    return () if neutral is None else neutral
