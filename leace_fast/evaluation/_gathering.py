"""Labelled rows of each site of a model, gathered from its forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models import GROUPS, LABELS, BatchLabels, Site, decoder_sites, tap, uncompiled
from ..scrubbing import Scrubber
from ..statistics import IGNORE

SLACK = 4  # rows are thinned out once they are more than wanted by this part of them


class Rows(NamedTuple):
    """Rows of a site, on the CPU.

    Attributes:
        x: (rows, dim) in the model's dtype.
        y: (rows,) int64 classes.
        groups: (rows,) int64, what text or speaker each is of.
    """

    x: Tensor
    y: Tensor
    groups: Tensor


class SiteRows:
    """Rows of each site with their classes and groups, as they come in the passes of `gathering`.

    Args:
        model: any module.
        sites: where rows are gathered.
        most: rows that are kept of a site, drawn evenly from all that come, the same ones at every site and on every
            stream of the same batches; None for all.

    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    >>> rows = SiteRows(model, [Site("0", 4)])
    >>> batch = {"input": torch.randn(2, 3, 4), "concept_labels": torch.tensor([[0, 1, -100], [1, 1, 0]])}
    >>> with rows.gathering(batch, 0):
    ...     _ = model(batch["input"])
    >>> x, y, groups = rows.of("0")
    >>> x.shape, y.tolist(), groups.tolist()
    (torch.Size([5, 4]), [0, 1, 1, 1, 0], [0, 0, 1, 1, 1])
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], most: int | None = None) -> None:
        self.model, self.most = model, most
        self.names = [site.name for site in sites]
        self._decoder = decoder_sites(model, self.names)
        self._held = {name: _Held(most) for name in self.names}
        self._sequences = 0

    @contextmanager
    def gathering(self, batch: Mapping[str, Any], number: int, groups: Tensor | None = None) -> Iterator[None]:
        """Takes in the labelled rows of a batch, which the model runs on inside the `with` block.

        Args:
            batch: of `concept_labels` (batch, length) or (batch,) int64, and of the masks.
            number: of the batch, which decides with a row's place whether it is drawn.
            groups: int64 (batch, length) or (batch,); None for the batch's `concept_groups` or, without them, each
                sequence by the number under which it came.

        Raises:
            ValueError, TypeError: as `BatchLabels`.
        """
        labels = BatchLabels(batch[LABELS], batch)
        first, self._sequences = self._sequences, self._sequences + labels.lead[0]
        if groups is None:
            groups = batch.get(GROUPS, torch.arange(first, self._sequences))
        of = BatchLabels(groups, batch, name=GROUPS)

        def gather(site: str, x: Tensor) -> None:
            decoder = site in self._decoder
            (y, mask), (each, _) = labels.rows(site, x, decoder), of.rows(site, x, decoder)
            kept = y != IGNORE if mask is None else (y != IGNORE) & mask
            held = self._held[site]
            # a seed of two numbers of which neither is likely to be anybody's
            generator = torch.Generator().manual_seed(0x1EACE + number)
            draws = torch.rand(y.numel(), generator=generator, dtype=torch.float64).reshape(y.shape)
            kept = kept & (draws <= held.limit).to(kept.device)
            held.add(x[kept].cpu(), y[kept].cpu(), each[kept].cpu(), draws[kept.cpu()])

        with tap(self.model, self.names, uncompiled(gather)):
            yield

    def count(self, site: str) -> int:
        """The number of rows of a site."""
        return len(self.of(site).y)

    def of(self, site: str) -> Rows:
        """The rows of a site."""
        return self._held[site].rows()


class _Held:
    """Rows with the numbers that were drawn for them: those of the smallest numbers stay."""

    def __init__(self, most: int | None) -> None:
        self.most, self.limit, self.count = most, 1.0, 0
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, *part: Tensor) -> None:
        self.parts.append(part)
        self.count += len(part[-1])
        if self.most is not None and self.count > self.most + self.most // SLACK:
            self._thin_out(self.most)

    def rows(self) -> Rows:
        if self.most is not None and self.count > self.most:
            self._thin_out(self.most)
        if not self.parts:
            return Rows(torch.empty(0, 0), *[torch.empty(0, dtype=torch.int64)] * 2)
        self._join()
        return Rows(*self.parts[0][:3])

    def _thin_out(self, most: int) -> None:
        self._join()
        draws = self.parts[0][-1]
        kept = draws.topk(most, largest=False).indices.sort().values
        self.parts, self.count = [tuple(part[kept] for part in self.parts[0])], most
        self.limit = float(draws[kept].max()) if most else 0.0

    def _join(self) -> None:
        if len(self.parts) > 1:
            self.parts = [tuple(torch.cat(part) for part in zip(*self.parts, strict=True))]


def erased(model: nn.Module, scrubber: Scrubber | None) -> AbstractContextManager[Any]:
    """The model with a scrubber's erasers at work inside the `with` block; without one, as it is."""
    return nullcontext() if scrubber is None else scrubber.attached(model)
