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
from ..statistics import IGNORE, Moments
from ._clock import Clock
from ._records import SiteResult, Study
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

    The rows held out are drawn at random, always the same ones. Methods that need class covariances, or passes over
    the rows, get them.

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
    with clock.stage("probe"):
        before = linear_probe(x, y, test_x, test_y)
        # in float64: a probe reads what float32 leaves of a column that was erased wholly, however little that is
        after = linear_probe(eraser(x.double()), y, eraser(test_x.double()), test_y)
    not_erased = eraser.report.not_erased if eraser.report else ()
    result = SiteResult(
        site, shards.dim, eraser.rank, before.accuracy, after.accuracy, after.constant, None, not_erased
    )
    rows = {"fit": moments.count, "probe": len(y), "probe_test": len(test_y)}
    return Study((result,), None, shards.class_names, rows, clock.seconds, {site: eraser})


def _record(
    shards: Shards, path: str | os.PathLike[str], moments: Moments, track: Track
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the rows to fit on into moments; return rows to probe: x and y of those to fit on and of those held out."""
    share = min(PROBE_ROWS, PROBE_MEMORY // (16 * shards.dim)) / max(shards.rows, 1)
    parts: list[list[Tensor]] = [[], [], [], []]
    done = 0
    for x, y, held_out, draw in _drawn(track(shards, "record")):
        if bool((wrong := ~x.isfinite().all(1) & (y != IGNORE)).any()):
            row = done + int(wrong.nonzero()[0])
            raise ValueError(f"row {row} of {path} holds NaN or Inf: leave it out, or label it {IGNORE}")
        done += len(x)
        moments.update(x, y, mask=~held_out)
        for place, side, part in ((0, ~held_out, 1 - HELD_OUT), (2, held_out, HELD_OUT)):
            kept = side & (y != IGNORE) & (draw < share / part)
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
