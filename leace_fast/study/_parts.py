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

    Raises:
        ValueError: there are fewer than two groups with labelled rows, or with `same` no group of two cells.
    """

    def __init__(self, batches: Sequence[Mapping[str, Any]], same: bool = False) -> None:
        self.same = same
        self.cells: list[Tensor] = []  # of each batch, (batch, length)
        groups: list[int] = []
        turns: list[int] = []
        seen: Counter[int] = Counter()
        rows: Counter[int] = Counter()
        for batch in batches:
            of_batch = batch.get(GROUPS, torch.arange(len(batch[LABELS])) + sum(map(len, self.cells)))
            kept = labelled(batch)
            cells = torch.full(kept.shape, -1, dtype=torch.int64)
            of_tokens = (of_batch if of_batch.ndim == 2 else of_batch[:, None]).expand(kept.shape)
            for place in range(len(kept)):
                for group in of_tokens[place].unique().tolist():
                    own = of_tokens[place] == group
                    cells[place, own] = len(groups)
                    if count := int((own & kept[place]).sum()):
                        rows[group] += count
                        turns.append(seen[group] % 2)
                        seen[group] += 1
                    else:
                        turns.append(0)
                    groups.append(group)
            self.cells.append(cells)
        if len(rows) < 2:
            raise ValueError(
                f"{len(rows)} held-out groups have a labelled row, expected at least two: one to train probes on and "
                "one to test them on"
            )
        if same and max(seen.values()) < 2:
            raise ValueError("no held-out group has two labelled sequences, expected some: one of them tests the probe")
        self.group, self.turn = torch.tensor(groups), torch.tensor(turns)
        self.train = torch.tensor(sorted(first_half(rows)))

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
