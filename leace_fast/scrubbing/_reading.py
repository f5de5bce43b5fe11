"""`Reading`: what a batch says of its rows, and `SiteMoments`: the statistics that are made of it at a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import GROUPS, LABELS, BatchLabels, describe
from ..statistics import IGNORE, Moments


@dataclass(frozen=True)
class Reading:
    """The labels of a batch.

    Attributes:
        where: which batch it is, for errors.
        labels: by concept; none of a batch that counts in the metric alone.
        groups: of its sequences or tokens, None if it has none.
        rows: a label for each sequence, by which masked rows are told.
    """

    where: str
    labels: Mapping[str, BatchLabels]
    groups: BatchLabels | None
    rows: BatchLabels

    @classmethod
    def of(cls, where: str, batch: Mapping[str, Any], labels: Mapping[str, BatchLabels]) -> Reading:
        """Return what a batch says, whose labels were read.

        Raises:
            ValueError, TypeError: its groups are no integers or not of its shape.
        """
        rows = torch.zeros(_sequences(batch, labels), dtype=torch.int64)
        return cls(where, labels, _groups(batch, labels), BatchLabels(rows, batch))


@dataclass(frozen=True)
class SiteMoments:
    """The statistics of one site.

    Attributes:
        concepts: those of each concept.
        others: those of the rows that the first of them leaves out, which count in the metric; None if they do not.
    """

    concepts: dict[str, Moments]
    others: Moments | None

    @property
    def every(self) -> list[Moments]:
        """All of them."""
        return [*self.concepts.values(), *([] if self.others is None else [self.others])]

    @property
    def metric(self) -> Moments | None:
        """Those of all rows, labelled or not; None where the labelled ones are all."""
        if self.others is None or not self.others.count:
            return None
        return next(iter(self.concepts.values())).pooled().merge(self.others)

    def add(self, x: Tensor, reading: Reading, site: str, decoder: bool, all_rows: bool) -> None:
        """Add the rows x of a batch at a site; those without labels, of a batch that has some, if `all_rows`."""
        groups = None if reading.groups is None else reading.groups.rows(site, x, decoder)[0]
        for name, labels in reading.labels.items():
            y, mask = labels.rows(site, x, decoder)
            moments = self.concepts[name]
            moments.update(x, y, mask=mask, groups=groups if moments.num_classes else None)
        if self.others is None:
            return
        if not reading.labels:
            self.others.update(x, mask=reading.rows.rows(site, x, decoder)[1])
            return
        first = next(iter(reading.labels.values()))
        if first.axes or not all_rows:  # of real-valued targets every row that is not masked has some
            return
        y, mask = first.rows(site, x, decoder)
        self.others.update(x, mask=y == IGNORE if mask is None else (y == IGNORE) & mask)


def _groups(batch: Mapping[str, Any], labels: Mapping[str, BatchLabels]) -> BatchLabels | None:
    groups = batch.get(GROUPS)
    if groups is None:
        return None
    if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.dtype == torch.bool:
        raise TypeError(f"{GROUPS} is {describe(groups)}, expected integers (batch,) or (batch, length)")
    read = BatchLabels(groups, batch, name=GROUPS)
    for name, each in labels.items():
        axes = min(len(read.lead), len(each.lead))
        if read.lead[:axes] != each.lead[:axes]:
            raise ValueError(
                f"{GROUPS} has shape {tuple(groups.shape)}, expected (batch,) or (batch, length) with {name} of shape "
                f"{tuple(each.labels.shape)}"
            )
    return read


def _sequences(batch: Mapping[str, Any], labels: Mapping[str, BatchLabels]) -> int:
    """Return how many sequences a batch has."""
    if labels:
        return next(iter(labels.values())).lead[0]
    for name, value in batch.items():
        if name != LABELS and isinstance(value, Tensor) and value.ndim:
            return value.shape[0]
    raise ValueError(f"a neutral batch holds no tensor, expected the model's inputs: it has {', '.join(batch)}")
