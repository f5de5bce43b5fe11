"""The parallel scrub: one pass over any number of batches fits all sites on the clean model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..erasers import Eraser
from ..models import BatchLabels, evaluating, tap
from ..statistics import Moments
from ._checkpoint import Checkpoint, Digest
from ._job import Job
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
    names = job.find(first[1], sites)
    digest = Digest()
    digest.add(first[1])
    gathered = _Gathered(job, names, job.checkpoint(digest))
    with torch.no_grad(), evaluating(job.model), tap(job.model, names, gathered.at_site):
        for index, batch in chain([first], stream):
            gathered.run(index, batch)
            job.seen.add(batch)  # those too that a checkpoint holds already
    job.concepts.check_classes(gathered.moments[names[0]])
    return {site: job.eraser(site, gathered.moments[site]) for site in job.track(names, "fit")}


def _learn_classes(job: Job, batches: Iterable[Mapping[str, Any]], first: Mapping[str, Any]) -> None:
    """Count the classes in a pass of its own, where the caller names none and the batches can be read again."""
    labels = job.labels(first, 0)
    if job.concepts.num_classes is None and iter(batches) is not batches:
        job.concepts.count(job.labels(batch, index) for index, batch in enumerate(batches))
    else:
        job.concepts.take(labels)


class _Gathered:
    """The statistics of all sites, gathered from forward passes that stop at the last one."""

    def __init__(self, job: Job, names: Sequence[str], saved: Checkpoint | None) -> None:
        self.job, self.last, self.saved = job, names[-1], saved
        self.moments: dict[str, dict[str, Moments]] = {}  # by site and concept
        self.done = -1  # number of the last batch that is in them
        if saved:
            self.done, self.moments = saved.moments(list(job.concepts.options), job.device_at)
        self.index = 0
        self.labels: dict[str, BatchLabels] = {}  # of the batch that runs

    def run(self, index: int, batch: Mapping[str, Any]) -> None:
        """Take in a batch, unless the checkpoint holds it already."""
        if index <= self.done:
            return
        self.index, self.labels = index, self.job.labels(batch, index)
        try:
            self.job.model(**self.job.inputs(batch))
        except Stop:
            if self.saved and (index + 1) % SAVED_EVERY == 0:
                self.saved.add_moments(index, self.moments)
        else:
            raise ValueError(f"{self.last!r} did not run on batch {index}: leave it out of the sites")

    def at_site(self, site: str, x: Tensor) -> None:
        """Add what a site of the batch that runs gives out."""
        if site not in self.moments:
            self.moments[site] = self.job.concepts.moments(x.shape[-1], x.device)
        self.job.add(self.moments[site], site, self.index, x, self.labels)
        if site == self.last:
            raise Stop
