"""The groups that the tokens of batches belong to, and the parts that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models import GROUPS, LABELS, MASK
from ..scrubbing import hashes_of
from ..statistics import IGNORE

TRAIN, TEST = 0, 1
SEVERAL = -1  # in the place of a class


class Groups:
    """The groups of a stream of batches: their `concept_groups`, or else each sequence, numbered as they come.

    Sequences that are the same but for padding are one group: their rows are the same too.

    >>> groups = Groups()
    >>> batch = {"concept_labels": torch.tensor([[0, 1], [1, 0]])}
    >>> groups.of(batch, 0).tolist(), groups.of(batch, 1).tolist()
    ([0, 1], [2, 3])
    """

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}  # of sequences, by hash
        self.given: bool | None = None

    def of(self, batch: Mapping[str, Any], index: int) -> Tensor:
        """The groups of a batch, int64, (batch,) of its sequences or (batch, length) of its tokens.

        Args:
            batch: with `concept_labels`.
            index: its number, for errors.

        Raises:
            ValueError: they do not fit the labels, one of a labelled token is below 0, or some batches have groups and
                others have none.
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
            return torch.tensor([self._number(each) for each in hashes_of(batch, len(labels))], dtype=torch.int64)
        if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.dtype == torch.bool:
            what = groups.dtype if isinstance(groups, Tensor) else type(groups).__name__
            raise TypeError(f"in batch {index}: {GROUPS} are {what}, expected a tensor of integers")
        axes = min(groups.ndim, labels.ndim)
        if not 1 <= groups.ndim <= 2 or groups.shape[:axes] != labels.shape[:axes]:
            raise ValueError(
                f"in batch {index}: {GROUPS} has shape {tuple(groups.shape)}, expected (batch,) or (batch, length) "
                f"with labels of shape {tuple(labels.shape)}"
            )
        groups = groups.long().cpu()
        used = groups[labelled(batch, groups)]  # padding may have any
        if used.numel() and int(used.min()) < 0:
            raise ValueError(f"in batch {index}: {GROUPS} holds {int(used.min())}, expected 0 or more")
        return groups

    def _number(self, told: int | None) -> int:
        """The number of a sequence of this hash; a new one for one that holds nothing."""
        count = len(self.numbers)
        return self.numbers.setdefault(-1 - count if told is None else told, count)


class Parts:
    """Which groups train the probes and which test them.

    Args:
        by_turns: of the groups of each class, and of those of several, every other one that appears trains and the
            rest test: also where classes come by turns, each part has all of them. Else the stream says.

    >>> parts = Parts(by_turns=True)
    >>> classes = torch.tensor([0, 1, -100, 1, 1, 0])
    >>> parts.of(torch.tensor([7, 3, 9, 7, 5, 4]), classes, TEST).tolist()
    [0, 1, -1, 0, 0, 0]
    """

    def __init__(self, by_turns: bool) -> None:
        self.by_turns = by_turns
        self.known: dict[int, int] = {}
        self._counts: dict[int, int] = {}  # of groups, by class

    def of(self, groups: Tensor, classes: Tensor, stream: int, given: bool = True) -> Tensor:
        """The part of each group, TRAIN or TEST, in the shape of the groups; -1 where nothing is labelled.

        Args:
            groups: int64.
            classes: int64 in the shape of the groups, as of `classes_of`.
            stream: TRAIN or TEST, for which the batch came.
            given: whether the groups have names; of sequences that train, those that come to test are left out.

        Raises:
            ValueError: a group with a name that trains comes to test.
        """
        labelled = classes != IGNORE
        found: dict[int, int] = {}
        for group, kind in zip(groups[labelled].tolist(), classes[labelled].tolist(), strict=True):
            found[group] = kind if found.setdefault(group, kind) == kind else SEVERAL
        here = {group: self._part(group, kind, stream, given) for group, kind in found.items()}
        parts = torch.full_like(groups, -1)
        parts[labelled] = torch.tensor([here[group] for group in groups[labelled].tolist()], dtype=torch.int64)
        return parts

    def _part(self, group: int, kind: int, stream: int, given: bool) -> int:
        if group not in self.known:
            # each class begins with the part that the one before did not begin with
            count = self._counts.setdefault(kind, len(self._counts) % 2)
            self._counts[kind] = count + 1
            self.known[group] = count % 2 if self.by_turns else stream
        part = self.known[group]
        if self.by_turns or part == stream:
            return part
        if not given:
            return -1
        raise ValueError(
            f"group {group} is in probe_batches, which train the probes, and in batches, which test them: "
            "leave it out of one, or the probes are tested on what they have seen"
        )


def classes_of(batch: Mapping[str, Any], groups: Tensor) -> Tensor:
    """The class of each group of a batch, int64 in the shape of the groups (batch,) or (batch, length), on the CPU.

    -1 stands for several classes, -100 for none.

    >>> classes_of({"concept_labels": torch.tensor([[0, 3], [1, 1], [-100, -100]])}, torch.tensor([4, 5, 6])).tolist()
    [-1, 1, -100]
    """
    labels, mask = batch[LABELS].long().cpu(), batch.get(MASK)
    if labels.ndim < groups.ndim:
        labels = labels[:, None].expand(groups.shape)
    if isinstance(mask, Tensor) and mask.shape == labels.shape:
        labels = torch.where(mask.bool().cpu(), labels, IGNORE)
    if groups.ndim == labels.ndim:
        return labels
    most = labels.amax(1)
    least = torch.where(labels == IGNORE, most[:, None], labels).amin(1)
    return torch.where(least == most, most, SEVERAL)


def labelled(batch: Mapping[str, Any], groups: Tensor) -> Tensor:
    """Which groups of a batch have a label, bool in the shape of the groups (batch,) or (batch, length), on the CPU.

    >>> labelled({"concept_labels": torch.tensor([[0, -100], [-100, -100]])}, torch.tensor([4, 5])).tolist()
    [True, False]
    """
    return classes_of(batch, groups) != IGNORE


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
