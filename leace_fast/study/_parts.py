"""Which held-out rows train a probe and which test it: by group, or within groups by sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation import Probe, Rows, linear_probe
from ..models import GROUPS, LABELS, MASK
from ..statistics import IGNORE
from ._records import Reading


class HeldOut:
    """The held-out batches by cell: the tokens of one group in one sequence, numbered as they come.

    Args:
        batches: with `concept_labels` (batch, length); with `concept_groups`, else each sequence is a group.
        same: whether a probe is also trained and tested on the same groups, on each other cell.
        swap: whether what trains and what tests change places: a second split, with other test rows.

    Raises:
        ValueError: there are fewer than two groups with labelled rows, or with `same` no group of two cells.
    """

    def __init__(self, batches: Sequence[Mapping[str, Any]], same: bool = False, swap: bool = False) -> None:
        self.same = same
        self.cells: list[Tensor] = []  # of each batch, (batch, length)
        groups: list[int] = []
        for batch in batches:
            first = sum(map(len, self.cells))
            of_batch = batch.get(GROUPS, torch.arange(first, first + len(batch[LABELS])))
            of_tokens = (of_batch if of_batch.ndim == 2 else of_batch[:, None]).expand(batch[LABELS].shape)
            cells = torch.empty_like(of_tokens)
            for place, row in enumerate(of_tokens):
                found, of_row = row.unique(return_inverse=True)
                cells[place] = of_row + len(groups)
                groups += found.tolist()
            self.cells.append(cells)
        self.group = torch.tensor(groups)
        kept = [labelled(batch) for batch in batches]
        cells, labels = (
            torch.cat([part[which].cpu() for part, which in zip(parts, kept, strict=True)])
            for parts in (self.cells, [batch[LABELS] for batch in batches])
        )
        self.counts = torch.zeros(len(groups), int(labels.max()) + 1, dtype=torch.int64)
        self.counts.index_put_((cells, labels), torch.ones_like(cells), accumulate=True)
        rows, turns = Counter[int](), Counter[int]()
        self.turn = torch.zeros(len(groups), dtype=torch.int64)
        for cell, count in enumerate(self.counts.sum(1).tolist()):
            if count:
                self.turn[cell] = (turns[groups[cell]] + swap) % 2
                turns[groups[cell]] += 1
                rows[groups[cell]] += count
        if len(rows) < 2:
            raise ValueError(
                f"{len(rows)} held-out groups have a labelled row, expected at least two: one to train probes on and "
                "one to test them on"
            )
        if same and max(turns.values()) < 2:
            raise ValueError("no held-out group has two labelled sequences, expected some: one of them tests the probe")
        half = first_half(rows)
        self.train = torch.tensor(sorted(half ^ set(rows) if swap else half))

    @property
    def group_gain(self) -> float:
        """Accuracy that each group's own commonest class gains over that of all, where groups train and test.

        A probe can gain it without reading the concept in a row, by telling which group the row is of.
        """
        train, right = self.counts * (self.turn == 0)[:, None], 0
        test = self.counts - train
        common = train.sum(0).argmax()
        for group in self.group.unique():
            own = self.group == group
            of_group = train[own].sum(0)
            right += int(test[own].sum(0)[of_group.argmax() if int(of_group.sum()) else common])
        return (right - int(test.sum(0)[common])) / int(test.sum())

    def read(self, rows: Rows) -> Reading:
        """Train probes on rows whose `groups` are cells, and test them.

        Args:
            rows: of one site.
        """
        group, turn = self.group[rows.groups], self.turn[rows.groups]
        other = self._probe(rows, torch.isin(group, self.train), group, group)
        # Trust in the probe is found on sequences that it was not trained on, its interval over the groups.
        return Reading(other, self._probe(rows, turn == 0, ~rows.groups, group) if self.same else None)

    def _probe(self, rows: Rows, train: Tensor, train_groups: Tensor, groups: Tensor) -> Probe:
        return linear_probe(
            rows.x[train], rows.y[train], rows.x[~train], rows.y[~train],
            groups=groups[~train], train_groups=train_groups[train],
        )  # fmt: skip


def first_half(rows: Mapping[int, int]) -> set[int]:
    """Half of the groups, with about half of the rows: by size, the first, then not two, then two, and so on.

    Args:
        rows: of each group.

    >>> sorted(first_half({7: 50, 8: 40, 9: 30, 10: 20}))
    [7, 10]
    """
    order = sorted(rows, key=lambda group: (-rows[group], group))
    return {group for place, group in enumerate(order) if place % 4 in (0, 3)}


def labelled(batch: Mapping[str, Any]) -> Tensor:
    """Which tokens of a batch have a label and are no padding, bool (batch, length)."""
    return (batch[LABELS] != IGNORE) & batch[MASK].bool()
