"""A study of one concept in one model: scrub it, probe before and after, and weigh what the erasure costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import Track, untracked
from ..erasers import Eraser
from ..evaluation import batch_nats, bits_per_byte, linear_probe, random_like
from ..methods import moments_method
from ..models import Site, find_sites, tap
from ..scrubbing import scrub

Batch = Mapping[str, Tensor]

PROBE_ROWS = 20_000
PROBE_MEMORY = 2**31  # bytes of activations that are kept for the probes, at most
RANDOM_SEEDS = 5
SLACK = 0.01  # how far a probe's accuracy may lie from the best constant's
QUIET = 0.1  # share of the concept's rise in loss that random subspaces may cause


@dataclass(frozen=True)
class SiteResult:
    """What a linear probe reads at one site: shares of the held-out rows that it names rightly."""

    site: str
    width: int
    rank: int
    before: float
    after: float  # in the scrubbed model: each eraser was fitted on what the earlier ones leave
    constant: float  # the best constant answer, fitted on the probe's training rows
    one_pass: float | None  # in the model with erasers that were all fitted on the clean model
    not_erased: tuple[str, ...] = ()

    @property
    def guarded(self) -> bool:
        """Tell whether the probe after erasure is within a point of the best constant."""
        return abs(self.after - self.constant) <= SLACK


@dataclass(frozen=True)
class Loss:
    """Nats per scored token of the held-out text, and what turns them into bits per byte."""

    clean: float
    erased: float  # scrubbed: at all sites, each eraser fitted on what the earlier ones leave
    one_pass: float  # at all sites, all erasers fitted on the clean model
    random: tuple[float, ...]  # random subspaces of the same ranks, one value a seed
    tokens: int
    text_bytes: int

    @property
    def random_rise_share(self) -> float:
        """The mean rise of the random erasures as a share of the concept's rise."""
        rise = self.erased - self.clean
        return (sum(self.random) / len(self.random) - self.clean) / rise if rise else float("nan")

    def bits(self, nats: float) -> float:
        """Turn nats per token into bits per byte."""
        return bits_per_byte(nats * self.tokens, self.text_bytes)


@dataclass(frozen=True)
class Study:
    """What was fitted and what was found."""

    sites: tuple[SiteResult, ...]
    loss: Loss | None  # None where the model predicts no next token
    class_names: tuple[str, ...]
    rows: dict[str, int]  # labelled rows that each part used
    seconds: dict[str, float]  # by stage, in order
    erasers: dict[str, Eraser] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the erasers as plain types, for JSON."""
        loss = None
        if self.loss is not None:
            bits = {
                "clean": self.loss.bits(self.loss.clean),
                "erased": self.loss.bits(self.loss.erased),
                "one_pass": self.loss.bits(self.loss.one_pass),
                "random": [self.loss.bits(nats) for nats in self.loss.random],
            }
            rise = self.loss.random_rise_share
            loss = {**dataclasses.asdict(self.loss), "bits_per_byte": bits, "random_rise_share": rise}
        return {
            "sites": [{**dataclasses.asdict(site), "guarded": site.guarded} for site in self.sites],
            "loss": loss,
            "class_names": list(self.class_names),
            "rows": self.rows,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


class Clock:
    """Wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a `with` block to a stage."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def run_study(
    model: nn.Module,
    fit: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    class_names: Sequence[str],
    text_bytes: int = 0,
    sites: str | Iterable[str] = "norms",
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
        sites: as in `find_sites`.
        method: a name in `METHODS`.
        probe_rows: most rows that a probe is trained on, drawn evenly from `fit`, always the same ones.
        random_seeds: number of random erasures to compare with.
        track: `track(items, stage)` returns the items and may show progress.
        clock: where the time of each stage is added.

    Raises:
        ValueError: an unknown method, no batches, or no labelled rows.
    """
    moments_method(method)  # raises for a name that is of no use here
    if not fit or not held_out:
        raise ValueError(f"got {len(fit)} batches to fit on and {len(held_out)} held out, expected some of each")
    clock = clock or Clock()
    rows = {"fit": _labelled_rows(fit), "held_out": _labelled_rows(held_out)}
    for part, count in rows.items():
        if not count:
            raise ValueError(f"no token of the {part} batches has a label, expected some: check concept_labels")
    found = find_sites(model, _inputs(model, fit[0]), sites)
    # Rows of every site are held six times: fit and held out; clean, scrubbed and scrubbed in one pass.
    probe_rows = min(probe_rows, PROBE_MEMORY // (24 * sum(site.width for site in found)))
    train, test = _Sample(fit, probe_rows), _Sample(held_out, probe_rows)
    rows |= {"probe": len(train.labels), "probe_test": len(test.labels)}
    score = text_bytes > 0

    options: dict[str, Any] = {"sites": found, "method": method, "num_classes": len(class_names), "track": track}
    inputs = [{name: batch[name] for name in ("input_ids", "attention_mask", "concept_labels")} for batch in fit]
    with clock.stage("scrub"):
        scrubber = scrub(model, inputs, **options)
    with clock.stage("scrub in one pass"):
        one_pass = scrub(model, inputs, mode="parallel", **options)
    with clock.stage("loss"):
        clean, test_x = _forward(model, track(held_out, "clean"), test, found, score=score)
        with scrubber.attached(model):
            erased, test_x_erased = _forward(model, track(held_out, "scrubbed"), test, found, score=score)
        with one_pass.attached(model):
            at_once, test_x_at_once = _forward(model, track(held_out, "in one pass"), test, found, score=score)
        random = []
        for seed in range(random_seeds if score else 0):
            with random_like(scrubber, seed).attached(model):
                random.append(_forward(model, track(held_out, f"random subspaces {seed + 1}"), score=True)[0])
    with clock.stage("activations"):
        _, x = _forward(model, track(fit, "clean activations"), train, found)
        with scrubber.attached(model):
            _, x_erased = _forward(model, track(fit, "scrubbed activations"), train, found)
        with one_pass.attached(model):
            _, x_at_once = _forward(model, track(fit, "activations, one pass"), train, found)
    with clock.stage("probe"):
        results = []
        for site in track(found, "probe"):
            name, report = site.name, scrubber[site.name].report
            before, after, again = (
                linear_probe(rows[name], train.labels, test_rows[name], test.labels)
                for rows, test_rows in ((x, test_x), (x_erased, test_x_erased), (x_at_once, test_x_at_once))
            )
            not_erased = report.not_erased if report else ()
            accuracies = before.accuracy, after.accuracy, after.constant, again.accuracy
            results.append(SiteResult(name, site.width, scrubber[name].rank, *accuracies, not_erased))
    loss = None
    if score:
        tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in held_out)
        each = tuple(nats / tokens for nats in random)
        loss = Loss(clean / tokens, erased / tokens, at_once / tokens, each, tokens, text_bytes)
    return Study(tuple(results), loss, tuple(class_names), rows, clock.seconds, dict(scrubber))


class _Sample:
    """Labelled rows drawn evenly from batches, at most about `most`: the same ones on every pass."""

    def __init__(self, batches: Sequence[Batch], most: int) -> None:
        share = most / max(_labelled_rows(batches), 1)
        generator = torch.Generator().manual_seed(0)
        draws = [torch.rand(batch["input_ids"].shape, generator=generator) < share for batch in batches]
        self.masks = [_labelled(batch) & draw for batch, draw in zip(batches, draws, strict=True)]
        labels = [batch["concept_labels"][mask] for batch, mask in zip(batches, self.masks, strict=True)]
        self.labels = torch.cat(labels)


def _forward(
    model: Any,
    batches: Iterable[Batch],
    sample: _Sample | None = None,
    sites: Sequence[Site] = (),
    *,
    score: bool = False,
) -> tuple[float, dict[str, Tensor]]:
    """Run the batches and return (summed nats if scored, the sampled rows of each site in the model's dtype)."""
    parts: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    mask = torch.empty(0)
    nats = 0.0

    def gather(name: str, output: Tensor) -> None:
        parts[name].append(output[mask.to(output.device)].cpu())

    with torch.no_grad(), tap(model, sites, gather):
        for index, batch in enumerate(batches):
            mask = sample.masks[index] if sample else mask
            if score:
                nats += batch_nats(model, {name: value.to(model.device) for name, value in batch.items()})
            else:
                model(**_inputs(model, batch))
    return nats, {name: torch.cat(rows) for name, rows in parts.items()}


def _inputs(model: Any, batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}


def _labelled(batch: Batch) -> Tensor:
    return (batch["concept_labels"] != -100) & batch["attention_mask"].bool()


def _labelled_rows(batches: Sequence[Batch]) -> int:
    return sum(int(_labelled(batch).sum()) for batch in batches)
