"""The groups that the tokens of batches belong to, and the parts that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models import GROUPS, LABELS, MASK
from ..statistics import IGNORE

TRAIN, TEST = 0, 1


class Groups:
    """The groups of a stream of batches: their `concept_groups`, or else each sequence, numbered as they come.

    >>> groups = Groups()
    >>> batch = {"concept_labels": torch.tensor([[0, 1], [1, 0]])}
    >>> groups.of(batch, 0).tolist(), groups.of(batch, 1).tolist()
    ([0, 1], [2, 3])
    """

    def __init__(self) -> None:
        self.sequences = 0
        self.given: bool | None = None

    def of(self, batch: Mapping[str, Any], index: int) -> Tensor:
        """The groups of a batch, int64, (batch,) of its sequences or (batch, length) of its tokens.

        Args:
            batch: with `concept_labels`.
            index: its number, for errors.

        Raises:
            ValueError: they do not fit the labels, one is below 0, or some batches have groups and others have none.
            TypeError: they are no integers.
        """
        labels, groups = batch[LABELS], batch.get(GROUPS)
        if self.given not in (None, groups is not None):
            raise ValueError(
                f"batch {index} has {'no ' if groups is None else ''}{GROUPS}, unlike those before: give them to all "
                "batches, those of probe_batches too, or to none"
            )
        self.given = groups is not None
        if groups is None:
            first, self.sequences = self.sequences, self.sequences + len(labels)
            return torch.arange(first, self.sequences)
        if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.dtype == torch.bool:
            what = groups.dtype if isinstance(groups, Tensor) else type(groups).__name__
            raise TypeError(f"in batch {index}: {GROUPS} are {what}, expected a tensor of integers")
        axes = min(groups.ndim, labels.ndim)
        if not 1 <= groups.ndim <= 2 or groups.shape[:axes] != labels.shape[:axes]:
            raise ValueError(
                f"in batch {index}: {GROUPS} has shape {tuple(groups.shape)}, expected (batch,) or (batch, length) "
                f"with labels of shape {tuple(labels.shape)}"
            )
        if groups.numel() and int(groups.min()) < 0:
            raise ValueError(f"in batch {index}: {GROUPS} holds {int(groups.min())}, expected 0 or more")
        return groups.long().cpu()


class Parts:
    """Which groups train the probes and which test them.

    Args:
        by_turns: the first group that appears trains, the second tests, and so on; else the stream says.

    >>> parts = Parts(by_turns=True)
    >>> labelled = torch.tensor([True, True, False, True, True])
    >>> parts.of(torch.tensor([7, 3, 9, 7, 5]), labelled, TEST).tolist()
    [0, 1, -1, 0, 0]
    """

    def __init__(self, by_turns: bool) -> None:
        self.by_turns = by_turns
        self.known: dict[int, int] = {}

    def of(self, groups: Tensor, labelled: Tensor, stream: int) -> Tensor:
        """The part of each group, TRAIN or TEST, in the shape of the groups; -1 where nothing is labelled.

        Args:
            groups: int64.
            labelled: bool, which of them have a label.
            stream: TRAIN or TEST, for which the batch came.

        Raises:
            ValueError: a group that trains comes to test.
        """
        parts = torch.full_like(groups, -1)
        found = []
        for group in groups[labelled].tolist():
            part = self.known.setdefault(group, len(self.known) % 2 if self.by_turns else stream)
            if not self.by_turns and part != stream:
                raise ValueError(
                    f"group {group} is in probe_batches, which train the probes, and in batches, which test them: "
                    "leave it out of one, or the probes are tested on what they have seen"
                )
            found.append(part)
        parts[labelled] = torch.tensor(found, dtype=torch.int64)
        return parts


def labelled(batch: Mapping[str, Any], groups: Tensor) -> Tensor:
    """Which groups of a batch have a label, bool in the shape of the groups (batch,) or (batch, length), on the CPU.

    >>> labelled({"concept_labels": torch.tensor([[0, -100], [-100, -100]])}, torch.tensor([4, 5])).tolist()
    [True, False]
    """
    kept, mask = (batch[LABELS] != IGNORE).cpu(), batch.get(MASK)
    if kept.ndim < groups.ndim:
        kept = kept[:, None].expand(groups.shape)
    if isinstance(mask, Tensor) and mask.shape == kept.shape:
        kept = kept & mask.bool().cpu()
    return kept.any(1) if groups.ndim < kept.ndim else kept


def only(batch: Mapping[str, Any], kept: Tensor) -> dict[str, Any]:
    """A batch in which only the kept sequences (batch,), or tokens (batch, length), have a label.

    >>> only({"concept_labels": torch.tensor([0, 1])}, torch.tensor([[True, False], [True, True]]))
    {'concept_labels': tensor([[   0, -100],
            [   1,    1]])}
    """
    labels = batch[LABELS]
    kept = kept.to(labels.device)
    while labels.ndim < kept.ndim:
        labels = labels.unsqueeze(-1)
    while kept.ndim < labels.ndim:
        kept = kept.unsqueeze(-1)
    return {**batch, LABELS: torch.where(kept, labels, IGNORE)}
