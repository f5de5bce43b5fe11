"""The parallel scrub: one pass over any number of batches fits all sites on the clean model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..erasers import Eraser
from ..models import eagerly, evaluating, tap
from ._checkpoint import Checkpoint, Digest
from ._job import Job
from ._reading import Reading, SiteMoments
from ._replay import Stop

SAVED_EVERY = 64  # batches between two checkpoints


def scrub_in_parallel(job: Job, batches: Iterable[Mapping[str, Any]], sites: Any) -> dict[str, Eraser]:
    """The erasers by site; of a stream that can be read once nothing is kept.

    Args:
        job: the call.
        batches: read once, or twice where their classes have to be counted.
        sites: as in `scrub`.
    """
    stream = enumerate(job.track(batches, "parallel"))
    first = next(stream, None)
    if first is None:
        raise ValueError("got no batches, expected some to fit on")
    _learn_classes(job, batches, first[1])
    names = job.find(*job.read(first[1], 0), sites)
    opening, neutral = _opened(job.neutral)
    gathered = _Gathered(job, names, _checkpoint(job, first[1], opening))
    with torch.no_grad(), eagerly(), evaluating(job.model), tap(job.model, names, gathered.at_site):
        for index, batch in chain([first], stream):
            batch, reading = job.read(batch, index)
            gathered.run(batch, reading)
            job.seen.add(batch)  # those too that a checkpoint holds already
        for index, batch in enumerate(job.track(neutral, "neutral") if job.has_neutral else ()):
            gathered.run(*job.read_neutral(batch, index))
    gathered.check_all_passed()
    job.concepts.check_classes(gathered.moments[names[0]].concepts)
    return {site: job.eraser(site, gathered.moments[site]) for site in job.track(names, "fit")}


def _checkpoint(job: Job, first: Any, opening: Any) -> Checkpoint | None:
    """The checkpoint of a call, which is known by its first batches before any of them runs."""
    digest = Digest()
    if job.folder is not None:
        digest.add(job.read(first, 0)[0], "batch 0")
        if opening is not None:
            digest.add(job.read_neutral(opening, 0)[0], "neutral batch 0")
    return job.checkpoint(digest)


def _learn_classes(job: Job, batches: Iterable[Mapping[str, Any]], first: Mapping[str, Any]) -> None:
    """Count the classes in a pass of its own, where the caller names none and the batches can be read again."""
    labels = job.labels(first, 0)
    if job.concepts.num_classes is None and iter(batches) is not batches:
        job.concepts.count(job.labels(batch, index) for index, batch in enumerate(batches))
    else:
        job.concepts.take(labels)


def _opened(batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Return the first of some batches, None of none, and all of them, also if they can be read once only."""
    stream = iter(batches)
    first = next(stream, None)
    return first, chain([first], stream) if stream is batches and first is not None else batches


class _Gathered:
    """The statistics of all sites, gathered from forward passes that stop at the last one."""

    def __init__(self, job: Job, names: Sequence[str], saved: Checkpoint | None) -> None:
        self.job, self.last, self.saved = job, names[-1], saved
        self.moments: dict[str, SiteMoments] = {}
        self.done = -1  # number of the last batch that is in them, neutral ones counted on
        if saved:
            self.done, self.moments = saved.moments(job.concepts.options, job.has_others, job.device_at)
        self.number = -1  # of the batch that runs
        self.passed = Digest()  # of the batches so far, by which those that a checkpoint holds are known again
        self.reading: Reading | None = None

    def run(self, batch: Mapping[str, Any], reading: Reading) -> None:
        """Take in the next batch, unless the checkpoint holds it already.

        Raises:
            ValueError: the checkpoint holds other batches than those that came; it, and they, are left as they are.
        """
        self.number += 1
        if self.saved:
            self.passed.add(batch, reading.where)
        if self.number <= self.done:
            if self.saved and self.number == self.done and str(self.passed) != self.saved.index["passed"]:
                raise self.saved.of_another_call(f"data: one of the first {self.done + 1} batches")
            return
        self.reading = reading
        try:
            self.job.model(**self.job.inputs(batch))
        except Stop:
            if self.saved and (self.number + 1) % SAVED_EVERY == 0:
                self.saved.add_moments(self.number, self.moments, str(self.passed))
        else:
            raise ValueError(f"{self.last!r} did not run on {reading.where}: leave it out of the sites")

    def check_all_passed(self) -> None:
        """Raise ValueError where the checkpoint holds more batches than there were."""
        if self.saved and self.number < self.done:
            raise self.saved.of_another_call(f"data: it holds {self.done + 1} batches, here are {self.number + 1}")

    def at_site(self, site: str, x: Tensor) -> None:
        """Add what a site of the batch that runs gives out."""
        if site not in self.moments:
            self.moments[site] = self.job.moments(x.shape[-1], x.device)
        assert self.reading is not None, "a batch runs"
        self.job.add(self.moments[site], site, x, self.reading)
        if site == self.last:
            raise Stop
