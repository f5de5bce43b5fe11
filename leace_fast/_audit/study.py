"""A study of one concept in one model: record, fit, probe before and after, and weigh what the erasure costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..eraser import Eraser
from ..methods import moments_method, random_subspace
from ..moments import Moments
from ..record import record
from ..scrubber import Scrubber
from ..sites import Site, find_sites, tap
from .loss import batch_nats, bits_per_byte
from .probe import linear_probe

Batch = Mapping[str, Tensor]
Track = Callable[[Any, str], Iterable[Any]]  # (items with a length, name of the stage) -> the same items

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
    after: float  # the same rows, each erased by this site's own eraser
    constant: float  # the best constant answer, fitted on the probe's training rows
    in_model: float | None  # rows of a forward pass in which all sites are erased at once
    not_erased: tuple[str, ...] = ()

    @property
    def guarded(self) -> bool:
        """Tell whether the probe after erasure is within a point of the best constant."""
        return abs(self.after - self.constant) <= SLACK


@dataclass(frozen=True)
class Loss:
    """Nats per scored token of the held-out text, and what turns them into bits per byte."""

    clean: float
    erased: float  # all sites at once
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


def untracked(items: Iterable[Any], stage: str) -> Iterable[Any]:
    """Return the items: the progress bar of a program without one."""
    return items


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
    """Fit an eraser at each site in one pass over `fit`, and measure all of them on `held_out`.

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
    fit_method = moments_method(method)
    if not fit or not held_out:
        raise ValueError(f"got {len(fit)} batches to fit on and {len(held_out)} held out, expected some of each")
    clock = clock or Clock()
    rows = {"fit": _labelled_rows(fit), "held_out": _labelled_rows(held_out)}
    for part, count in rows.items():
        if not count:
            raise ValueError(f"no token of the {part} batches has a label, expected some: check concept_labels")
    found = find_sites(model, _inputs(model, fit[0]), sites)
    # Rows of every site are held four times: fit and held out, clean and erased.
    probe_rows = min(probe_rows, PROBE_MEMORY // (16 * sum(site.width for site in found)))
    train, test = _Sample(fit, probe_rows), _Sample(held_out, probe_rows)
    rows |= {"probe": len(train.labels), "probe_test": len(test.labels)}
    score = text_bytes > 0

    with clock.stage("record"), record(model, found, num_classes=len(class_names)) as moments:
        _, x = _forward(model, track(fit, "record"), train, found, labelled=True)
    with clock.stage("fit"):
        erasers = {site.name: fit_method(moments[site.name]).with_site(site.name) for site in found}
        scrubber = Scrubber(erasers)
    with clock.stage("loss"):
        clean, test_x = _forward(model, track(held_out, "clean"), test, found, score=score)
        with scrubber.attached(model):
            erased, test_x_erased = _forward(model, track(held_out, "erased"), test, found, score=score)
        random = []
        for seed in range(random_seeds if score else 0):
            with _random(moments, erasers, seed).attached(model):
                random.append(_forward(model, track(held_out, f"random subspaces {seed + 1}"), score=True)[0])
    with clock.stage("probe"):
        with scrubber.attached(model):
            _, x_erased = _forward(model, track(fit, "erased activations"), train, found)
        results = []
        for site in track(found, "probe"):
            name, eraser = site.name, erasers[site.name]
            before = linear_probe(x[name], train.labels, test_x[name], test.labels)
            # On float32 rows: the guarantee is about e(x), not about rounding it to the model's dtype.
            after = linear_probe(eraser(x[name].float()), train.labels, eraser(test_x[name].float()), test.labels)
            in_model = linear_probe(x_erased[name], train.labels, test_x_erased[name], test.labels)
            not_erased = eraser.report.not_erased if eraser.report else ()
            accuracies = before.accuracy, after.accuracy, after.constant, in_model.accuracy
            results.append(SiteResult(name, site.width, eraser.rank, *accuracies, not_erased))
    loss = None
    if score:
        tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in held_out)
        loss = Loss(clean / tokens, erased / tokens, tuple(nats / tokens for nats in random), tokens, text_bytes)
    return Study(tuple(results), loss, tuple(class_names), rows, clock.seconds, erasers)


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
    labelled: bool = False,
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
                model(**_inputs(model, batch, labelled))
    return nats, {name: torch.cat(rows) for name, rows in parts.items()}


def _inputs(model: Any, batch: Batch, labelled: bool = False) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask") + ("concept_labels",) * labelled
    return {name: batch[name].to(model.device) for name in names}


def _labelled(batch: Batch) -> Tensor:
    return (batch["concept_labels"] != -100) & batch["attention_mask"].bool()


def _labelled_rows(batches: Sequence[Batch]) -> int:
    return sum(int(_labelled(batch).sum()) for batch in batches)


def _random(moments: Mapping[str, Moments], erasers: Mapping[str, Eraser], seed: int) -> Scrubber:
    """Return random erasers of the same ranks, each site with a subspace of its own."""
    names = list(erasers)
    return Scrubber(
        {
            name: random_subspace(moments[name], erasers[name].rank, seed=seed * len(names) + index)
            for index, name in enumerate(names)
        }
    )
