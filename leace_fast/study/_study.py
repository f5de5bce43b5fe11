"""A study of one concept in one model: what is left in rows that no eraser was fitted on, and what erasing costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .._progress import Track, untracked
from ..evaluation import SiteRows, erased, next_token_losses, random_like, without_seen
from ..models import LABELS, MASK, Inside, Site, device_of, evaluating, inputs_of, item_size, resolve_sites
from ..scrubbing import Scrubber
from ..statistics import IGNORE
from ._clock import Clock
from ._parts import HeldOut, labelled
from ._records import Fitted, Loss, Reading, SiteResult, Study

Batch = Mapping[str, Tensor]

INPUTS = ("input_ids", MASK)  # what the model takes of a batch
PROBE_ROWS = 20_000
PROBE_MEMORY = 2**29  # bytes of activations that are kept for the probes, at most
RANDOM_SEEDS = 5
CLEAN = "clean"


def run_study(
    model: nn.Module,
    variants: Mapping[str, Scrubber],
    held_out: Sequence[Batch],
    *,
    class_names: Sequence[str],
    text_bytes: int = 0,
    main: str | None = None,
    group: str = "group",
    same_groups: bool = False,
    probe_rows: int = PROBE_ROWS,
    random_seeds: int = RANDOM_SEEDS,
    track: Track = untracked,
    clock: Clock | None = None,
) -> Study:
    """Measure scrubbers of one model on batches that none of them was fitted on.

    At each site, in the clean model and with each scrubber at work, a probe is trained on half of the groups and tested
    on the others. Sequences that a scrubber was fitted on, as its hashes tell, are not probed.

    Args:
        model: any module that takes the batches; moved nowhere, changed nowhere.
        variants: scrubbers of the same sites by name.
        held_out: batches with `input_ids`, `attention_mask` and `concept_labels` (batch, length) int64, -100 where a
            token has no class; `labels` too where loss is measured. Groups are their `concept_groups`, or else each
            sequence is one.
        class_names: names of the classes 0, 1, ...
        text_bytes: bytes of the text that `labels` of `held_out` score; 0 leaves the loss out.
        main: the variant whose erasers are kept and whose ranks the random subspaces have; None for the first.
        group: what a group is called.
        same_groups: whether further probes are trained and tested on the same groups, on each other sequence of them.
        probe_rows: most rows that a probe is trained on, and tested on, drawn evenly, always the same ones.
        random_seeds: number of random erasures to compare with.
        track: `track(items, stage)` returns the items and may show progress.
        clock: where the time of each stage is added.

    Raises:
        ValueError: no variants, variants of other sites, no batches, or too few labelled rows or groups.
    """
    inside = Inside(model)
    main = _main(variants, main, inside)
    held_out = _unseen(held_out, variants)
    clock, score, parts = clock or Clock(), text_bytes > 0, HeldOut(held_out, same_groups)
    example = inputs_of(_only(INPUTS, held_out[0]), device_of(model))
    sites = resolve_sites(inside.model, example, inside.sites(list(variants[main])), True)
    most = min(2 * probe_rows, PROBE_MEMORY // sum(site.width * item_size(model) for site in sites))
    nats: dict[str, float] = {}
    readings: dict[str, dict[str, Reading]] = {}
    for name, scrubber in {CLEAN: None, **variants}.items():
        rows = SiteRows(inside.model, sites, most)
        with clock.stage("passes"):
            nats[name] = _run(inside, track(held_out, name), scrubber, rows, parts, score)
        with clock.stage("probes"):
            names = track([site.name for site in sites], f"probes: {name}")
            readings[name] = {site: parts.read(rows.of(site)) for site in names}
    with clock.stage("random subspaces"):
        random = [
            _run(inside, track(held_out, f"random subspaces {seed + 1}"), random_like(variants[main], seed))
            for seed in range(random_seeds if score else 0)
        ]
    results = tuple(_site_result(site, inside, variants, readings) for site in sites)
    probe = results[0].clean.other
    return Study(
        sites=results,
        loss=_loss(nats, random, held_out, text_bytes) if score else None,
        class_names=tuple(class_names),
        rows={
            "fit": Fitted.of(variants[main]).rows,
            "held_out": sum(int(labelled(batch).sum()) for batch in held_out),
            "probe": probe.train_rows,
            "probe_test": probe.test_rows,
        },
        seconds=clock.seconds,
        scrubbers=dict(variants),
        main=main,
        group=group,
        group_gain=parts.group_gain if same_groups else None,
    )


def _main(variants: Mapping[str, Scrubber], main: str | None, inside: Inside) -> str:
    """The name of the main variant; ValueError where there is none or the variants do not go together."""
    if not variants or main not in {None, *variants} or CLEAN in variants:
        raise ValueError(
            f"the variants are {', '.join(map(repr, variants)) or 'none'}, and main is {main!r}: expected some, "
            f"none called {CLEAN!r}, and main among them"
        )
    name = next(iter(variants)) if main is None else main
    for other, scrubber in variants.items():
        if set(map(inside.name, scrubber)) != set(map(inside.name, variants[name])):
            raise ValueError(f"the variants {name!r} and {other!r} have other sites, expected the same")
    return name


def _unseen(held_out: Sequence[Batch], variants: Mapping[str, Scrubber]) -> Sequence[Batch]:
    """The held-out batches without the labels of sequences that were fitted on; ValueError where none are left."""
    if not held_out:
        raise ValueError("got no held-out batches, expected some")
    for scrubber in variants.values():
        held_out = [without_seen(batch, scrubber) for batch in held_out]
    if not any(bool(labelled(batch).any()) for batch in held_out):
        raise ValueError(
            f"no token of the held_out batches has a label in a sequence that was not fitted on, expected some: check "
            f"{LABELS}"
        )
    return held_out


def _run(
    inside: Inside,
    batches: Iterable[Batch],
    scrubber: Scrubber | None,
    rows: SiteRows | None = None,
    parts: HeldOut | None = None,
    score: bool = True,
) -> float:
    """Run batches with erasers at work, gathering rows, and return the summed nats of their `labels` if scored."""
    model, device, nats = inside.model, device_of(inside.model), 0.0
    with torch.no_grad(), evaluating(model), erased(inside.whole, scrubber):
        for number, batch in enumerate(batches):
            inputs = inputs_of(_only(INPUTS, batch), device) | ({"use_cache": False} if score else {})
            with rows.gathering(batch, number, parts.cells[number]) if rows and parts else nullcontext():
                output = model(**inputs)
            if score:
                nats += next_token_losses(output.logits, batch["labels"])[0].item()
    return nats


def _site_result(
    site: Site, inside: Inside, variants: Mapping[str, Scrubber], readings: Mapping[str, Mapping[str, Reading]]
) -> SiteResult:
    """What probes read at a site: clean, and with the erasers of each variant."""
    erasers = {
        name: eraser
        for name, scrubber in variants.items()
        for place, eraser in scrubber.items()
        if inside.name(place) == site.name
    }
    return SiteResult(
        inside.given(site.name),
        site.width,
        clean=readings[CLEAN][site.name],
        erased={name: readings[name][site.name] for name in variants},
        ranks={name: eraser.rank for name, eraser in erasers.items()},
        not_erased={name: each.report.not_erased for name, each in erasers.items() if each.report},
    )


def _loss(nats: Mapping[str, float], random: Sequence[float], held_out: Sequence[Batch], text_bytes: int) -> Loss:
    """The losses of all states, as nats per scored token."""
    tokens = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in held_out)
    erased_nats = {name: value / tokens for name, value in nats.items() if name != CLEAN}
    return Loss(nats[CLEAN] / tokens, erased_nats, tuple(value / tokens for value in random), tokens, text_bytes)


def _only(names: Iterable[str], batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in names}
