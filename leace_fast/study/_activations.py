"""The study of `leace-fast fit` on activation shards."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._progress import Track, untracked
from ..data import SHARD_SUFFIXES, Shards
from ..evaluation import Probe, Rows, linear_probe
from ..methods import CLASS_COVARIANCES, METHODS, ROWS, leace, moments_method
from ..scrubbing import Scrubber
from ..statistics import IGNORE, Moments
from ._clock import Clock
from ._records import Reading, SiteResult, Study
from ._study import PROBE_MEMORY, PROBE_ROWS
from ._texts import HELD_OUT, Contrasts

Change = Callable[[Tensor], Tensor]
FIT, TRAIN, TEST = 0, 1, 2  # the parts of the rows: for the eraser, and for its probe


def is_shards(source: str) -> bool:
    """Tell whether a path names activation shards: a shard file, or a folder that holds them and no model."""
    path = Path(source)
    if path.is_dir():
        return not (path / "config.json").exists() and any(p.suffix in SHARD_SUFFIXES for p in path.iterdir())
    return path.suffix in SHARD_SUFFIXES


def study_shards(
    path: str | os.PathLike[str],
    *,
    method: str = "leace",
    contrasts: Contrasts = 0,
    site: str = "activations",
    track: Track = untracked,
) -> Study:
    """Fit one eraser on 70 % of the rows of activation shards, and probe the other rows before and after it.

    Of the rows held out, half train the probes and half test them. Where the shards have groups, each is wholly in one
    of the three parts, by a hash of its name; else rows are drawn at random, always the same ones. Methods that need
    class covariances, or passes over the rows, get them.

    Args:
        path, method, track: as in `Shards` and `study_texts`.
        contrasts: as in `leace`; they need groups.
        site: what the eraser's site is called.

    Raises:
        FileNotFoundError, ValueError: as in `Shards`; an unknown method, or one that needs more; too few rows of a
            class, or too few groups.
    """
    needs = METHODS[method].needs if method in METHODS else ""
    fit_method: Any = METHODS[method] if needs in (ROWS, CLASS_COVARIANCES) else moments_method(method)
    clock = Clock()
    with clock.stage("load"):
        shards = Shards(path)
        if contrasts and not shards.group_names:
            raise ValueError(f"contrasts need groups, {path} has none: add the array groups (rows,) to each shard")
        rows = _Rows(shards)
        moments = Moments(shards.dim, len(shards.class_names), per_class=needs == CLASS_COVARIANCES)
    with clock.stage("record"):
        train, test = _record(rows, path, moments, track)
    if not len(train.y) or not len(test.y):
        raise ValueError(f"{shards.rows} rows are too few, expected enough to fit on some and hold out others")
    if contrasts:
        fit_method = functools.partial(leace, contrasts=contrasts)
    with clock.stage("fit"):
        eraser = fit_method(rows if needs == ROWS else moments).with_site(site)
    with clock.stage("probes"):
        changes: tuple[Change, Change] = (lambda x: x, lambda x: eraser(x.double()))
        before, after = (Reading(_probe(change, train, test)) for change in changes)
    not_erased = {method: eraser.report.not_erased} if eraser.report else {}
    result = SiteResult(site, shards.dim, before, {method: after}, {method: eraser.rank}, not_erased)
    counts = {"fit": moments.count, "probe": len(train.y), "probe_test": len(test.y)}
    group = "group" if shards.group_names else "row"
    erasers = {method: Scrubber({site: eraser})}
    return Study((result,), None, shards.class_names, counts, clock.seconds, erasers, main=method, group=group)


def _probe(change: Change, train: Rows, test: Rows) -> Probe:
    """What is read after a change, in float64: a probe reads what float32 leaves of a column that was erased wholly."""
    return linear_probe(change(train.x), train.y, change(test.x), test.y, groups=test.groups, train_groups=train.groups)


class _Rows:
    """The rows of shards, in chunks with their groups and parts; iterated, those to fit on, for several passes.

    Args:
        shards: the shards.

    Raises:
        ValueError: they have groups, but fewer than three.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.shares = torch.tensor([1 - HELD_OUT, HELD_OUT / 2, HELD_OUT / 2])  # of the parts, in rows
        self.part_of_group = _parts(shards.group_names)
        if shards.group_names:
            of_part = torch.zeros(3).index_add_(0, self.part_of_group, torch.tensor(shards.group_rows).float())
            self.shares = of_part / max(shards.rows, 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y, _, part, _ in self.chunks():
            yield x.float(), y.masked_fill(part != FIT, IGNORE)

    def __len__(self) -> int:
        return len(self.shards)

    def chunks(self, track: Track = untracked) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]]:
        """Each chunk (x, y, groups) with the part of each row, and a number from 0 to 1: always the same draw."""
        generator = torch.Generator().manual_seed(0)
        for x, y, groups in track(_Chunks(self.shards), "record"):
            drawn, draw = torch.rand(2, len(x), generator=generator)
            part = torch.where(drawn < HELD_OUT, torch.where(drawn < HELD_OUT / 2, TRAIN, TEST), FIT)
            yield x, y, groups, part if groups is None else self.part_of_group[groups], draw


class _Chunks:
    """The chunks of shards, with a length."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        return self.shards.chunks()

    def __len__(self) -> int:
        return len(self.shards)


def _parts(names: Sequence[str]) -> Tensor:
    """The part of each group (groups,): those whose hash comes first are held out, and train and test by turns."""
    if len(names) in (1, 2):
        raise ValueError(
            f"the rows are of {len(names)} groups, expected 3 or more: one to fit on, one to train the probe, one to "
            "test it; name smaller groups, or leave groups out"
        )
    order = sorted(range(len(names)), key=lambda place: hashlib.sha256(names[place].encode()).digest())
    held_out = order[: max(2, round(HELD_OUT * len(names)))]
    parts = torch.full((len(names),), FIT)
    parts[held_out[::2]], parts[held_out[1::2]] = TRAIN, TEST
    return parts


def _record(rows: _Rows, path: str | os.PathLike[str], moments: Moments, track: Track) -> tuple[Rows, Rows]:
    """Take the rows to fit on into moments; return rows to train the probe on, and to test it."""
    shards = rows.shards
    share = min(PROBE_ROWS, PROBE_MEMORY // (16 * shards.dim)) / max(shards.rows, 1)
    kept: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {TRAIN: [], TEST: []}
    done = 0
    for x, y, groups, part, draw in rows.chunks(track):
        if bool((wrong := ~x.isfinite().all(1) & (y != IGNORE)).any()):
            row = done + int(wrong.nonzero()[0])
            raise ValueError(f"row {row} of {path} holds NaN or Inf: leave it out, or label it {IGNORE}")
        moments.update(x, y, mask=part == FIT, groups=groups)
        numbers = torch.arange(done, done + len(x)) if groups is None else groups
        done += len(x)
        for side, found in kept.items():
            drawn = (part == side) & (y != IGNORE) & (draw < share / rows.shares[side])
            found.append((x[drawn], y[drawn], numbers[drawn]))
    train, test = (Rows(*map(torch.cat, zip(*found, strict=True))) for found in kept.values())
    return train, test
