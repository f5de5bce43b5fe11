"""The study of `leace-fast fit` on activation shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .._progress import Track, untracked
from ..data import SHARD_SUFFIXES, Shards
from ..evaluation import linear_probe
from ..methods import CLASS_COVARIANCES, METHODS, ROWS, moments_method
from ..scrubbing import Scrubber
from ..statistics import IGNORE, Moments
from ._clock import Clock
from ._records import Reading, SiteResult, Study
from ._study import PROBE_MEMORY, PROBE_ROWS
from ._texts import HELD_OUT


def is_shards(source: str) -> bool:
    """Tell whether a path names activation shards: a shard file, or a folder that holds them and no model."""
    path = Path(source)
    if path.is_dir():
        return not (path / "config.json").exists() and any(p.suffix in SHARD_SUFFIXES for p in path.iterdir())
    return path.suffix in SHARD_SUFFIXES


def study_shards(
    path: str | os.PathLike[str], *, method: str = "leace", site: str = "activations", track: Track = untracked
) -> Study:
    """Fit one eraser on 70 % of the rows of activation shards, and probe the other rows before and after it.

    Probes are trained on half of the other rows and tested on the rest. All three parts are drawn at random row by
    row, always the same ones: shards name no groups. Methods that need class covariances, or passes over the rows, get
    them.

    Raises:
        FileNotFoundError, ValueError: as in `Shards`; an unknown method, or one that needs more; too few rows of a
            class.
    """
    needs = METHODS[method].needs if method in METHODS else ""
    fit_method = METHODS[method] if needs in (ROWS, CLASS_COVARIANCES) else moments_method(method)
    clock = Clock()
    with clock.stage("load"):
        shards = Shards(path)
        moments = Moments(shards.dim, len(shards.class_names), per_class=needs == CLASS_COVARIANCES)
    with clock.stage("record"):
        x, y, test_x, test_y = _record(shards, path, moments, track)
    if not len(y) or not len(test_y):
        raise ValueError(f"{shards.rows} rows are too few, expected enough to fit on some and hold out others")
    with clock.stage("fit"):
        eraser = fit_method(_RowsToFitOn(shards) if needs == ROWS else moments).with_site(site)
    with clock.stage("probes"):
        clean = Reading(linear_probe(x, y, test_x, test_y))
        # in float64: a probe reads what float32 leaves of a column that was erased wholly, however little that is
        after = Reading(linear_probe(eraser(x.double()), y, eraser(test_x.double()), test_y))
    not_erased = {method: eraser.report.not_erased} if eraser.report else {}
    result = SiteResult(site, shards.dim, clean, {method: after}, {method: eraser.rank}, not_erased)
    rows = {"fit": moments.count, "probe": len(y), "probe_test": len(test_y)}
    erasers = {method: Scrubber({site: eraser})}
    return Study((result,), None, shards.class_names, rows, clock.seconds, erasers, main=method, group="row")


def _record(
    shards: Shards, path: str | os.PathLike[str], moments: Moments, track: Track
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the rows to fit on into moments; return x and y of those held out: half to train, half to test probes."""
    half = min(1.0, min(PROBE_ROWS, PROBE_MEMORY // (16 * shards.dim)) / max(shards.rows * HELD_OUT / 2, 1)) / 2
    parts: list[list[Tensor]] = [[], [], [], []]
    done = 0
    for x, y, held_out, draw in _drawn(track(shards, "record")):
        if bool((wrong := ~x.isfinite().all(1) & (y != IGNORE)).any()):
            row = done + int(wrong.nonzero()[0])
            raise ValueError(f"row {row} of {path} holds NaN or Inf: leave it out, or label it {IGNORE}")
        done += len(x)
        moments.update(x, y, mask=~held_out)
        for place, drawn in ((0, draw < half), (2, draw >= 1 - half)):
            kept = held_out & drawn & (y != IGNORE)
            parts[place].append(x[kept])
            parts[place + 1].append(y[kept])
    x, y, test_x, test_y = (torch.cat(part) for part in parts)
    return x, y, test_x, test_y


def _drawn(chunks: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Each chunk of rows with which of them are held out, and a number from 0 to 1 for each: always the same draw."""
    generator = torch.Generator().manual_seed(0)
    for x, y in chunks:
        held_out, draw = torch.rand(2, len(x), generator=generator)
        yield x, y, held_out < HELD_OUT, draw


class _RowsToFitOn:
    """The rows of shards with those held out labelled -100, for several passes."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y, held_out, _ in _drawn(self._shards):
            yield x.float(), y.masked_fill(held_out, IGNORE)
