"""Labelled rows of each site of a model, gathered from its forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..models import LABELS, BatchLabels, Site, decoder_sites, tap
from ..scrubbing import Scrubber
from ..statistics import IGNORE

Choice = Callable[[int, Tensor], Tensor]  # (number of a batch, which of its rows are labelled) -> those that are kept


class SiteRows:
    """Rows of each site with their classes, as they come in the passes of `gathering`.

    Args:
        model: any module.
        sites: where rows are gathered.
        choose: which labelled rows of a batch are kept: the sampler.

    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    >>> rows = SiteRows(model, [Site("0", 4)], every_row)
    >>> batch = {"input": torch.randn(2, 3, 4), "concept_labels": torch.tensor([[0, 1, -100], [1, 1, 0]])}
    >>> with rows.gathering(batch, 0):
    ...     _ = model(batch["input"])
    >>> x, y = rows.of("0")
    >>> x.shape, y.tolist()
    (torch.Size([5, 4]), [0, 1, 1, 1, 0])
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], choose: Choice) -> None:
        self.model, self.choose = model, choose
        self.names = [site.name for site in sites]
        self._decoder = decoder_sites(model, self.names)
        self._parts: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in self.names}

    @contextmanager
    def gathering(self, batch: Mapping[str, Any], number: int) -> Iterator[None]:
        """Takes in the rows of a batch, which the model runs on inside the `with` block.

        Args:
            batch: of `concept_labels` (batch, length) or (batch,) int64, and of the masks.
            number: of the batch, for the sampler.

        Raises:
            ValueError, TypeError: as `BatchLabels`.
        """
        labels = BatchLabels(batch[LABELS], batch)

        def gather(site: str, x: Tensor) -> None:
            y, mask = labels.rows(site, x, site in self._decoder)
            kept = self.choose(number, y != IGNORE if mask is None else (y != IGNORE) & mask)
            rows, classes = self._parts[site]
            rows.append(x[kept].cpu())
            classes.append(y[kept].cpu())

        with tap(self.model, self.names, gather):
            yield

    def count(self, site: str) -> int:
        """The number of rows of a site."""
        return sum(map(len, self._parts[site][1]))

    def of(self, site: str, most: int | None = None) -> tuple[Tensor, Tensor]:
        """The rows of a site (rows, dim) in the model's dtype and their classes (rows,), on the CPU.

        Args:
            site: its name.
            most: take every second row, every third and so on, so that no more are left; None for all.
        """
        x, y = (torch.cat(part) for part in self._parts[site])
        step = 1 if most is None else max(1, -(-len(y) // most))
        return x[::step], y[::step]


def every_row(number: int, labelled: Tensor) -> Tensor:
    """The sampler that keeps all labelled rows."""
    return labelled


def every_other_sequence(turn: int) -> Choice:
    """The sampler that keeps the labelled rows of sequences 0, 2, ... (turn 0) or 1, 3, ... (turn 1) of each batch."""

    def choose(number: int, labelled: Tensor) -> Tensor:
        places = torch.arange(labelled.numel(), device=labelled.device).reshape(labelled.shape)
        return labelled & (places // max(labelled[0].numel(), 1) % 2 == turn)

    return choose


def erased(model: nn.Module, scrubber: Scrubber | None) -> AbstractContextManager[Any]:
    """The model with a scrubber's erasers at work inside the `with` block; without one, as it is."""
    return nullcontext() if scrubber is None else scrubber.attached(model)
