"""A study of one concept in one model: scrub it, probe before and after, and weigh what the erasure costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import Track, untracked
from ..erasers import Eraser
from ..evaluation import Probe, Rows, SiteRows, erased, linear_probe, next_token_losses, random_like
from ..methods import moments_method
from ..models import LABELS, MASK, Site, device_of, evaluating, inputs_of, resolve_sites
from ..scrubbing import Scrubber, scrub
from ..statistics import IGNORE
from ._clock import Clock
from ._records import Loss, SiteResult, Study

Batch = Mapping[str, Tensor]

INPUTS = ("input_ids", MASK)  # what the model takes of a batch
PROBE_ROWS = 20_000
PROBE_MEMORY = 2**31  # bytes of activations that are kept for the probes, at most
RANDOM_SEEDS = 5


@dataclass
class State:
    """The model with the erasers of a scrubber at work or, without one, as it is; and what is found in it."""

    on_held_out: str  # what its pass over the held-out batches is called,
    on_fit: str = ""  # and that over the batches to fit on
    scrubber: Scrubber | None = None
    train: SiteRows | None = None  # that probes are trained on
    test: SiteRows | None = None
    nats: float = 0.0  # of the held-out text


def run_study(
    model: nn.Module,
    fit: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    class_names: Sequence[str],
    text_bytes: int = 0,
    sites: str | Iterable[str] | Iterable[Site] = "norms",
    method: str = "leace",
    probe_rows: int = PROBE_ROWS,
    random_seeds: int = RANDOM_SEEDS,
    track: Track = untracked,
    clock: Clock | None = None,
) -> Study:
    """Scrub a model on `fit`, one site after another and in one pass, and measure both on `held_out`.

    Args:
        model: any module that takes the batches; moved nowhere, changed nowhere.
        fit, held_out: batches with `input_ids`, `attention_mask` and `concept_labels` (batch, length) int64, -100
            where a token has no class; `labels` too where loss is measured.
        class_names: names of the classes 0, 1, ...
        text_bytes: bytes of the text that `labels` of `held_out` score; 0 leaves the loss out.
        sites: as in `scrub`.
        method: a name in `METHODS`.
        probe_rows: most rows that a probe is trained on, drawn evenly from `fit`, always the same ones.
        random_seeds: number of random erasures to compare with.
        track: `track(items, stage)` returns the items and may show progress.
        clock: where the time of each stage is added.

    Raises:
        ValueError: an unknown method, no batches, or no labelled rows.
    """
    moments_method(method)  # raises for a name that is of no use here
    rows = _count_rows(fit, held_out)
    clock, score = clock or Clock(), text_bytes > 0
    found = resolve_sites(model, inputs_of(_only(INPUTS, fit[0]), device_of(model)), sites)
    # Rows of every site are held six times: fit and held out; clean, scrubbed and scrubbed in one pass.
    probe_rows = min(probe_rows, PROBE_MEMORY // (24 * sum(site.width for site in found)))

    options: dict[str, Any] = {"sites": found, "method": method, "num_classes": len(class_names), "track": track}
    inputs = [_only((*INPUTS, LABELS), batch) for batch in fit]
    with clock.stage("scrub"):
        scrubber = scrub(model, inputs, **options)
    with clock.stage("scrub in one pass"):
        one_pass = scrub(model, inputs, mode="parallel", **options)
    clean = State("clean", "clean activations")
    scrubbed = State("scrubbed", "scrubbed activations", scrubber)
    at_once = State("in one pass", "activations, one pass", one_pass)
    states = [clean, scrubbed, at_once]
    for state in states:
        state.train, state.test = (SiteRows(model, found, probe_rows) for _ in range(2))
    with clock.stage("loss"):
        random = [
            State(f"random subspaces {seed + 1}", scrubber=random_like(scrubber, seed))
            for seed in range(random_seeds if score else 0)
        ]
        for state in (*states, *random):
            state.nats = _run(model, track(held_out, state.on_held_out), state.scrubber, state.test, score)
    with clock.stage("activations"):
        for state in states:
            _run(model, track(fit, state.on_fit), state.scrubber, state.train)
    for name, kept in (("probe", clean.train), ("probe_test", clean.test)):
        rows[name] = kept.count(found[0].name) if kept else 0
    with clock.stage("probe"):
        results = [_site_result(site, scrubber[site.name], *states) for site in track(found, "probe")]
    loss = _loss(clean, scrubbed, at_once, random, held_out, text_bytes) if score else None
    return Study(tuple(results), loss, tuple(class_names), rows, clock.seconds, dict(scrubber))


def _run(
    model: nn.Module, batches: Iterable[Batch], scrubber: Scrubber | None, rows: SiteRows | None, score: bool = False
) -> float:
    """Run batches with erasers at work, gathering rows, and return the summed nats of their `labels` if scored."""
    device, nats = device_of(model), 0.0
    with torch.no_grad(), evaluating(model), erased(model, scrubber):
        for number, batch in enumerate(batches):
            inputs = inputs_of(_only(INPUTS, batch), device) | ({"use_cache": False} if score else {})
            with rows.gathering(batch, number) if rows else nullcontext():
                output = model(**inputs)
            if score:
                nats += next_token_losses(output.logits, batch["labels"])[0].item()
    return nats


def _site_result(site: Site, eraser: Eraser, *states: State) -> SiteResult:
    """What probes read at a site: clean, scrubbed, and scrubbed in one pass."""
    before, after, one_pass = (
        _probe(state.train.of(site.name), state.test.of(site.name)) for state in states if state.train and state.test
    )
    return SiteResult(
        site.name,
        site.width,
        eraser.rank,
        before=before.accuracy,
        after=after.accuracy,
        constant=after.constant,
        one_pass=one_pass.accuracy,
        not_erased=eraser.report.not_erased if eraser.report else (),
    )


def _probe(train: Rows, test: Rows) -> Probe:
    return linear_probe(train.x, train.y, test.x, test.y, groups=test.groups)


def _loss(
    clean: State, scrubbed: State, at_once: State, random: Sequence[State], held_out: Sequence[Batch], text_bytes: int
) -> Loss:
    """The losses of all states, as nats per scored token."""
    tokens = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in held_out)
    return Loss(
        clean=clean.nats / tokens,
        erased=scrubbed.nats / tokens,
        one_pass=at_once.nats / tokens,
        random=tuple(state.nats / tokens for state in random),
        tokens=tokens,
        text_bytes=text_bytes,
    )


def _count_rows(fit: Sequence[Batch], held_out: Sequence[Batch]) -> dict[str, int]:
    """The labelled rows of both parts; ValueError where one has none."""
    if not fit or not held_out:
        raise ValueError(f"got {len(fit)} batches to fit on and {len(held_out)} held out, expected some of each")
    rows = {}
    for part, batches in (("fit", fit), ("held_out", held_out)):
        rows[part] = sum(int(_labelled(batch).sum()) for batch in batches)
        if not rows[part]:
            raise ValueError(f"no token of the {part} batches has a label, expected some: check {LABELS}")
    return rows


def _labelled(batch: Batch) -> Tensor:
    return (batch[LABELS] != IGNORE) & batch[MASK].bool()


def _only(names: Iterable[str], batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in names}
