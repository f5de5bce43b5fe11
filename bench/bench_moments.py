"""Streaming rows into the statistics: one round is a stream of batches, up to and with the sums of staged rows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy
import pytest
import torch
from concept_erasure import LeaceFitter
from torch import Tensor
from work import Candidate, Work, rotation

import leace_fast as lf

STREAM = 16384  # rows of a round, whatever the size of a batch
CLASSES = 8
DIMS, BATCHES = (768, 1024, 2048), (256, 4096, 16384)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of an entry of the covariance; the columns have unit variance. How far off the peers are is in the results.
TOLERANCE, PEERS_TOLERANCE = 2e-6, 1e-4


class Statistics(Protocol):
    """Long-lived statistics; y are labels, z the same one-hot, float32, made beforehand."""

    def update(self, x: Tensor, y: Tensor, z: Tensor) -> object: ...
    def finish(self) -> object: ...
    def covariances(self) -> tuple[Tensor, Tensor]: ...


class Ours:
    def __init__(self, dim: int) -> None:
        self.moments = lf.Moments(dim, num_classes=CLASSES)

    def update(self, x: Tensor, y: Tensor, z: Tensor) -> object:
        return self.moments.update(x, y)

    def finish(self) -> object:
        return self.moments.class_counts

    def covariances(self) -> tuple[Tensor, Tensor]:
        return self.moments.covariance, self.moments.cross_covariance


class ConceptErasure:
    def __init__(self, dim: int, dtype: torch.dtype) -> None:
        self.fitter = LeaceFitter(dim, CLASSES, dtype=dtype)

    def update(self, x: Tensor, y: Tensor, z: Tensor) -> object:
        return self.fitter.update(x, z)

    def finish(self) -> None: ...

    def covariances(self) -> tuple[Tensor, Tensor]:
        assert self.fitter.sigma_xx_ is not None
        return self.fitter.sigma_xx_ / self.fitter.n, self.fitter.sigma_xz_ / self.fitter.n


class Torch:
    """Sums about a fixed shift in float32, as few passes as eager torch allows."""

    def __init__(self, dim: int) -> None:
        self.shift = None
        self.rows, self.counts = 0, torch.zeros(CLASSES)
        self.sums, self.second = torch.zeros(dim, CLASSES), torch.zeros(dim, dim)

    def update(self, x: Tensor, y: Tensor, z: Tensor) -> None:
        if self.shift is None:
            self.shift = x.float().mean(0)
        centred = x - self.shift
        self.rows += len(x)
        self.counts += z.sum(0)
        self.sums.addmm_(centred.mT, z)
        self.second.addmm_(centred.mT, centred)

    def finish(self) -> None: ...

    def covariances(self) -> tuple[Tensor, Tensor]:
        offset, shares = self.sums.sum(1) / self.rows, self.counts / self.rows
        return self.second / self.rows - torch.outer(offset, offset), self.sums / self.rows - torch.outer(
            offset, shares
        )


class NumPy:
    """The same in NumPy, whose `x.T @ x` is a symmetric update."""

    def __init__(self, dim: int) -> None:
        self.shift = None
        self.rows, self.counts = 0, numpy.zeros(CLASSES, numpy.float32)
        self.sums, self.second = numpy.zeros((dim, CLASSES), numpy.float32), numpy.zeros((dim, dim), numpy.float32)

    def update(self, x: Tensor, y: Tensor, z: Tensor) -> None:
        rows, members = x.numpy(), z.numpy()
        if self.shift is None:
            self.shift = rows.mean(0)
        centred = rows - self.shift
        self.rows += len(rows)
        self.counts += members.sum(0)
        self.sums += centred.T @ members
        self.second += centred.T @ centred

    def finish(self) -> None: ...

    def covariances(self) -> tuple[Tensor, Tensor]:
        offset, shares = self.sums.sum(1) / self.rows, self.counts / self.rows
        second = self.second / self.rows - numpy.outer(offset, offset)
        return torch.from_numpy(second), torch.from_numpy(self.sums / self.rows - numpy.outer(offset, shares))


PEERS = {
    "leace-fast": Ours,
    "concept-erasure float32": lambda dim: ConceptErasure(dim, torch.float32),
    "concept-erasure float64": lambda dim: ConceptErasure(dim, torch.float64),
    "torch": Torch,
    "NumPy": NumPy,
}


@functools.cache
def labels() -> tuple[Tensor, Tensor]:
    y = torch.randint(CLASSES, (STREAM,), generator=torch.Generator().manual_seed(1))
    return y, torch.nn.functional.one_hot(y, CLASSES).float()


@functools.cache
def exact(dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the covariance of the first stream of the rotation and that with the one-hot labels, from float64."""
    x, z = next(rotation(dtype, STREAM, dim)).double(), labels()[1].double()
    centred = x - x.mean(0)
    return centred.mT @ centred / STREAM, centred.mT @ z / STREAM


@pytest.mark.parametrize(("dim", "batch", "dtype"), list(itertools.product(DIMS, BATCHES, DTYPES)))
def bench_moments(measure_in_turn, dim: int, batch: int, dtype: torch.dtype) -> None:
    streams = rotation(dtype, STREAM, dim)
    y, z = (part.split(batch) for part in labels())

    def feed(statistics: Statistics, streams: Iterator[Tensor] = streams) -> None:
        for rows in zip(next(streams).split(batch), y, z, strict=True):
            statistics.update(*rows)
        statistics.finish()

    candidates = {}
    for peer, make in PEERS.items():
        if peer == "NumPy" and dtype != torch.float32:  # it has no bfloat16, and sums float16 in float16
            continue
        statistics: Statistics = make(dim)
        feed(statistics, rotation(dtype, STREAM, dim))
        pairs = zip(statistics.covariances(), exact(dim, dtype), strict=True)
        error = max(float((found.double() - true).abs().max()) for found, true in pairs)
        assert error <= (TOLERANCE if isinstance(statistics, Ours) else PEERS_TOLERANCE)
        candidates[peer] = Candidate(error, functools.partial(feed, statistics))

    work = Work(
        group=f"moments d={dim} N={batch} {str(dtype).removeprefix('torch.')}",
        bytes=STREAM * dim * next(streams).element_size(),
        operations=STREAM * dim * (dim + 1 + 1),  # one triangle of the products, and the class sums
        dtype=dtype,
    )
    measure_in_turn(work, candidates)
