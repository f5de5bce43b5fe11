"""The sequential scrub: each eraser is fitted on what the earlier ones left, at the cost of about one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..erasers import Eraser
from ._buffer import Buffer, give_back_memory
from ._checkpoint import Digest
from ._job import Job
from ._reading import Reading, SiteMoments
from ._replay import Replay
from ._stored import Batch

Stored = list[tuple[Batch, Reading]]


def scrub_in_sequence(job: Job, batches: Iterable[Mapping[str, Any]], sites: Any, buffer: Buffer) -> dict[str, Eraser]:
    """The erasers by site.

    Args:
        job: the call.
        batches: read once, and stored.
        sites: as in `scrub`.
        buffer: where batches, and the passes that wait at a site, are stored.
    """
    stored: Stored = []
    names: list[str] = []
    digest = Digest()
    for index, batch in enumerate(job.track(batches, "read")):
        batch, reading = job.read(batch, index)
        job.seen.add(batch)
        if job.folder is not None:
            digest.add(batch, f"batch {index}")
        if not names:
            names = job.find(batch, reading, sites)
        stored.append((Batch(batch, buffer), reading))
    if not stored:
        raise ValueError("got no batches, expected some to fit on")
    job.concepts.count(reading.labels for _, reading in stored)
    for index, batch in enumerate(job.track(job.neutral, "read neutral") if job.has_neutral else ()):
        batch, reading = job.read_neutral(batch, index)
        if job.folder is not None:
            digest.add(batch, f"neutral batch {index}")
        stored.append((Batch(batch, buffer), reading))
    erasers: dict[str, Eraser] = {}
    saved = job.checkpoint(digest)
    replay = Replay(job.model, names, lambda site, x: erasers[site](x), buffer)
    with replay.running(stored[0][0]):
        for number, site in enumerate(job.track(names, "sites")):
            eraser = saved.eraser(site) if saved else None
            if eraser is None:
                eraser = _fit_site(job, replay, stored, site, keep=number + 1 < len(names))
                if saved:
                    saved.add(site, eraser)
            erasers[site] = eraser
    return erasers


def _fit_site(job: Job, replay: Replay, stored: Sequence[Any], site: str, keep: bool) -> Eraser:
    """Run all batches to a site, where they wait if `keep`, and fit on what they have there."""
    moments: SiteMoments | None = None
    for batch, reading in job.track(stored, site):
        x = replay.run(batch, site, keep=keep)
        moments = moments or job.moments(x.shape[-1], x.device)
        job.add(moments, site, x, reading)
        if x.device.type == "cpu":
            give_back_memory()
    assert moments is not None, "there is a batch"
    return job.eraser(site, moments)
