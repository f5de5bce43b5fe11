"""`scrub`: erase a concept at every site of a model, each eraser fitted on what the earlier ones left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._progress import Track, progress_bars
from ..erasers import Eraser
from ..methods import METHODS, moments_method
from ..models import (
    LABELS,
    MASK,
    BatchLabels,
    Site,
    check_inputs,
    decoder_sites,
    device_of,
    evaluating,
    inputs_of,
    resolve_sites,
    tap,
)
from ..statistics import Moments
from ._buffer import Buffer, give_back_memory
from ._checkpoint import Checkpoint, Digest, fingerprint
from ._replay import Batch, Replay, Stop, without_cache
from ._scrubber import Scrubber

Method = Callable[[Any], Eraser]
Classes = int | Mapping[str, int] | None

SAVED_EVERY = 64  # batches of a parallel scrub, between two checkpoints


@torch.inference_mode(False)
def scrub(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    sites: str | Iterable[str] | Iterable[Site] = "norms",
    method: str | Method = "leace",
    mode: Literal["sequential", "parallel"] = "sequential",
    buffer: int | str = "8GiB",
    *,
    num_classes: Classes = None,
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
        model: any module; it is left as it was.
        batches: the model's inputs by name, with `concept_labels`: integers (batch, length) with -100 for tokens to
            leave out, or (batch,) for whole sequences; real-valued with one axis more; or several such concepts by
            name, whose union is erased. Tokens that `attention_mask` (batch, length) masks are left out.
        sites: as in `find_sites`; or what it returned.
        method: a name in `METHODS` or a function from `Moments` (several concepts: a list of them) to `Eraser`.
        mode: "sequential" or "parallel".
        buffer: memory in which passes wait, in bytes or such as "8GiB"; beyond it, a temporary file. Sequential only.
        num_classes: number of classes, by name for several concepts; None to take it from the labels, which a stream
            that can be read once does not allow in parallel mode.
        checkpoint: a folder in which each fitted eraser (parallel: the statistics, every 64 batches) is kept; the same
            call goes on from there after an interruption, to the same bits as without one.
        track: `track(items, stage)` returns the items and may show progress; None for bars on a terminal.

    Raises:
        ValueError: unknown sites or options, labels that do not fit, a class that never occurs, activations that are
            not finite, or a checkpoint of another call; each says where.
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
    fit = _method(method)
    name = method if isinstance(method, str) else getattr(method, "__name__", "custom")
    job = _Job(model, fit, num_classes, track or progress_bars(), checkpoint, {"mode": mode, "method": name})
    if mode == "parallel":
        return _parallel(job, batches, sites)
    with Buffer(buffer) as store:
        return _sequential(job, batches, sites, store)


class _Job:
    """What both modes share: the labels' classes, statistics of one site, and the fit."""

    def __init__(
        self,
        model: nn.Module,
        fit: Method,
        num_classes: Classes,
        track: Track,
        checkpoint: str | os.PathLike[str] | None,
        facts: dict[str, Any],
    ) -> None:
        self.model, self.fit, self.track, self.folder, self.facts = model, fit, track, checkpoint, facts
        self.given = num_classes
        self.device = device_of(model)
        self.concepts: list[str] = []
        self.options: dict[str, dict[str, Any]] = {}  # of the Moments, by concept
        self.decoder: set[str] = set()

    def labels(self, batch: Any, index: int) -> dict[str, BatchLabels]:
        """The labels of a batch by concept; errors name the batch."""
        if not isinstance(batch, Mapping):
            raise TypeError(f"batch {index} is a {type(batch).__name__}, expected the model's inputs by name")
        found = batch.get(LABELS)
        if found is None:
            raise ValueError(
                f'batch {index} has no "{LABELS}": (batch, length) with -100 for tokens to leave out, or (batch,) '
                "for whole sequences"
            )
        concepts = found if isinstance(found, Mapping) else {LABELS: found}
        made = {}
        for name, labels in concepts.items():
            real = isinstance(labels, Tensor) and labels.is_floating_point()
            try:
                made[name] = BatchLabels(labels, batch, labels.shape[-1] if real else None, name)
                if name in self.options:
                    rows = torch.zeros(*made[name].lead, 1)
                    Moments(1, **self.options[name]).update(rows, labels.cpu(), mask=_own(made[name]))
            except (ValueError, TypeError) as error:
                raise type(error)(f"in batch {index}: {error}") from None
        if not self.concepts:
            self.concepts = list(made)
            self._check_method()
        if set(made) != set(self.concepts):
            raise ValueError(f"batch {index} has the concepts {', '.join(made)}, expected {', '.join(self.concepts)}")
        return made

    def _check_method(self) -> None:
        """Refuse a method of ours that takes one concept, where the batches have several."""
        one = {row.fit for row in METHODS.values() if not row.several}
        if len(self.concepts) > 1 and self.fit in one:
            enough = " or ".join(name for name, row in METHODS.items() if row.several and not row.needs)
            raise ValueError(
                f"the method {self.facts['method']!r} erases one concept, the batches have {', '.join(self.concepts)}: "
                f"use {enough}, or scrub of one of them"
            )

    def count_classes(self, all_labels: Iterable[Mapping[str, BatchLabels]]) -> None:
        """Learn the kind of each concept, and refuse classes that never occur."""
        seen: dict[str, set[int]] = {}
        for index, labels in enumerate(all_labels):
            for name, each in labels.items():
                if each.axes:
                    self.options[name] = {"target_dim": each.labels.shape[-1]}
                    continue
                classes, count = each.used.unique().tolist(), self._given(name)
                if wrong := [label for label in classes if label < 0 or (count and label >= count)]:
                    wanted = f"0 to {count - 1}" if count else "0 or more"
                    raise ValueError(f"in batch {index}: {name} holds the class {wrong[0]}, expected {wanted}")
                seen.setdefault(name, set()).update(classes)
        for name, classes in seen.items():
            count = self._given(name) or max(classes, default=-1) + 1
            refuse_absent(name, count, classes)
            self.options[name] = {"num_classes": count}

    def take_classes(self, labels: Mapping[str, BatchLabels]) -> None:
        """Learn the kind of each concept from the first batch and the caller."""
        for name, each in labels.items():
            count = self._given(name)
            if not each.axes and count is None:
                raise ValueError(
                    "parallel mode cannot count the classes of a stream that is read once: pass num_classes, or "
                    "batches that can be read again"
                )
            self.options[name] = {"target_dim": each.labels.shape[-1]} if each.axes else {"num_classes": count or 2}

    def _given(self, name: str) -> int | None:
        return self.given.get(name) if isinstance(self.given, Mapping) else self.given

    def site_moments(self, site: str, dim: int, device: torch.device) -> dict[str, Moments]:
        return {name: Moments(dim, **options, device=device) for name, options in self.options.items()}

    def add(
        self, moments: Mapping[str, Moments], site: str, index: int, x: Tensor, labels: Mapping[str, BatchLabels]
    ) -> None:
        """Add a batch's activations at a site."""
        for name, each in moments.items():
            before = each.skipped
            rows, mask = labels[name].rows(site, x, site in self.decoder)
            each.update(x, rows, mask=mask)
            if each.skipped > before:
                raise ValueError(
                    f"{each.skipped - before} activations at {site!r} are not finite in batch {index}: leave the batch "
                    "out, run the model in a dtype with more range, or choose other sites"
                )

    def eraser(self, site: str, moments: Mapping[str, Moments]) -> Eraser:
        every = list(moments.values())
        try:
            eraser = self.fit(every[0] if len(every) == 1 else every)
        except ValueError as error:
            raise ValueError(f"at {site!r}: {error}") from error
        if not isinstance(eraser, Eraser):
            raise TypeError(f"the method returned a {type(eraser).__name__} at {site!r}, expected an Eraser")
        return eraser.with_site(site)

    def find(self, batch: Mapping[str, Any], sites: Any) -> list[str]:
        names = [site.name for site in resolve_sites(self.model, self.on_device(batch), sites)]
        self.decoder = decoder_sites(self.model, names)
        self.facts["sites"] = names
        return names

    def on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return without_cache(self.model, inputs_of(batch, self.device))

    def checkpoint(self, digest: Digest) -> Checkpoint | None:
        facts = {**self.facts, "concepts": self.options, "model": fingerprint(self.model), "data": str(digest)}
        return Checkpoint(self.folder, facts) if self.folder else None


def _sequential(job: _Job, batches: Iterable[Mapping[str, Any]], sites: Any, store: Buffer) -> Scrubber:
    stored: list[tuple[Batch, dict[str, BatchLabels]]] = []
    names: list[str] = []
    digest = Digest()
    for index, batch in enumerate(job.track(batches, "read")):
        labels = job.labels(batch, index)
        if job.folder:
            digest.add(batch)
        if not names:
            names = job.find(batch, sites)
        stored.append((Batch(batch, store), labels))
    if not stored:
        raise ValueError("got no batches, expected some to fit on")
    job.count_classes(labels for _, labels in stored)
    erasers: dict[str, Eraser] = {}
    saved = job.checkpoint(digest)
    replay = Replay(job.model, names, lambda site, x: erasers[site](x), store)
    with replay.running(stored[0][0]):
        for number, site in enumerate(job.track(names, "sites")):
            eraser = saved.eraser(site) if saved else None
            if eraser is None:
                eraser = _fit_site(job, replay, stored, site, keep=number + 1 < len(names))
                if saved:
                    saved.add(site, eraser)
            erasers[site] = eraser
    return Scrubber.of_model(job.model, erasers)


def _fit_site(job: _Job, replay: Replay, stored: Sequence[Any], site: str, keep: bool) -> Eraser:
    moments: dict[str, Moments] = {}
    for index, (batch, labels) in enumerate(job.track(stored, site)):
        x = replay.run(batch, site, keep=keep)
        moments = moments or job.site_moments(site, x.shape[-1], x.device)
        job.add(moments, site, index, x, labels)
        if x.device.type == "cpu":
            give_back_memory()
    return job.eraser(site, moments)


def _parallel(job: _Job, batches: Iterable[Mapping[str, Any]], sites: Any) -> Scrubber:
    moments: dict[str, dict[str, Moments]] = {}
    names: list[str] = []
    saved: Checkpoint | None = None
    with ExitStack() as stack:
        stack.enter_context(evaluating(job.model))
        stack.enter_context(torch.no_grad())
        now: list[Any] = [0, {}]  # number and labels of the batch that runs

        def act(site: str, x: Tensor) -> None:
            if site not in moments:
                moments[site] = job.site_moments(site, x.shape[-1], x.device)
            job.add(moments[site], site, now[0], x, now[1])
            if site == names[-1]:
                raise Stop

        done = -1
        for index, batch in enumerate(job.track(batches, "parallel")):
            if not names:
                first = job.labels(batch, index)
                if job.given is None and iter(batches) is not batches:
                    job.count_classes(job.labels(each, number) for number, each in enumerate(batches))
                else:
                    job.take_classes(first)
                names = job.find(batch, sites)
                digest = Digest()
                digest.add(batch)
                if saved := job.checkpoint(digest):
                    done, moments = saved.moments(job.options)
                stack.enter_context(tap(job.model, names, act))
            if index <= done:
                continue
            now[:] = index, job.labels(batch, index)
            try:
                job.model(**job.on_device(batch))
            except Stop:
                if saved and (index + 1) % SAVED_EVERY == 0:
                    saved.add_moments(index, moments)
            else:
                raise ValueError(f"{names[-1]!r} did not run on batch {index}: leave it out of the sites")
    if not names:
        raise ValueError("got no batches, expected some to fit on")
    for name, each in moments[names[0]].items():
        if each.num_classes:
            refuse_absent(name, each.num_classes, set(each.class_counts.nonzero().flatten().tolist()))
    return Scrubber.of_model(job.model, {site: job.eraser(site, moments[site]) for site in job.track(names, "fit")})


def refuse_absent(name: str, count: int, classes: set[int]) -> None:
    """Raise ValueError for classes 0 to count - 1 of a concept that never occur, or for a single one."""
    if missing := sorted(set(range(count)) - classes):
        listed = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        raise ValueError(
            f"of the classes 0 to {count - 1} of {name}, {listed} never occur in these batches: number the classes "
            "without gaps, or give batches that hold them"
        )
    if count < 2:
        raise ValueError(f"{name} holds {count} classes, expected at least two: there is nothing to tell apart")


def _own(labels: BatchLabels) -> Tensor | None:
    mask = labels.masks.get(MASK)
    return mask.cpu() if mask is not None and len(labels.lead) == 2 else None


def _method(method: str | Method) -> Method:
    if callable(method):
        return method
    return moments_method(method)
