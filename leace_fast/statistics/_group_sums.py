"""Class sums by group: what tells how far the class means of a group never seen may lie from those that were fitted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ._at_once import Step
from ._block_sums import cell_sums

MOST_GROUP = 2**40  # ids below it, times the number of a class, stay in int64
TENSORS = ("keys", "counts", "weights", "sums", "shift")


@dataclass(frozen=True)
class Cells:
    """Rows by group and class, for each pair that has rows; sorted by group, then class.

    Attributes:
        groups: (c,) int64, ids of the groups.
        classes: (c,) int64.
        counts: (c,) int64 rows.
        weights: (c,) float64 sums of the weights.
        means: (c, d) float64 means of x, less a shift common to all.
    """

    groups: Tensor
    classes: Tensor
    counts: Tensor
    weights: Tensor
    means: Tensor

    @property
    def ids(self) -> Tensor:
        """The groups that have rows (g,) int64, sorted."""
        return self.groups.unique_consecutive()

    @property
    def places(self) -> Tensor:
        """The place of each cell's group among them (c,) int64."""
        return self.groups.unique_consecutive(return_inverse=True)[1]

    @property
    def group_weights(self) -> Tensor:
        """Sums of the weights by group (g,)."""
        return summed(self.weights, self.places, len(self.ids))

    @property
    def group_means(self) -> Tensor:
        """Means of x by group (g, d), less the shift of `means`."""
        return summed(self.weights[:, None] * self.means, self.places, len(self.ids)) / self.group_weights[:, None]

    @property
    def effective_groups(self) -> float:
        """One over the sum of the squared shares of the groups in the weight; 0 without rows."""
        weights = self.group_weights
        return float(weights.sum() ** 2 / weights.square().sum()) if len(weights) else 0.0

    def of_groups(self, ids: Tensor) -> Cells:
        """Return the cells of some groups, sorted ids (g,) int64."""
        kept = torch.isin(self.groups, ids)
        return Cells(*(part[kept] for part in (self.groups, self.classes, self.counts, self.weights, self.means)))


def summed(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Return the sums of values (c, ...) by index (c,): (count, ...)."""
    return values.new_zeros(count, *values.shape[1:]).index_add_(0, index, values)


class GroupSums:
    """Sums of rows by group and class, of the pairs that have rows, about a shift of their own.

    A `draft` takes rows while these sums stay as they are, and shares their memory, which grows with every text of a
    corpus: what it adds to cells that there were before waits, as `steps`.

    Args:
        dim: width of x.
        num_classes: number of classes.
        device: where the sums live.
    """

    def __init__(self, dim: int, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self._slots: dict[int, int] = {}  # by group * num_classes + class, in the order in which they came
        self._new: dict[int, int] = {}  # those of a draft that are not yet among them
        self._waiting: list[tuple[Tensor, ...]] | None = None  # what a draft is to add: slots, then what to each
        self._shift = torch.zeros(dim, dtype=torch.float64, device=device)
        self._counts = torch.zeros(0, dtype=torch.int64, device=device)
        self._weights = self._shift.new_zeros(0)
        self._sums = self._shift.new_zeros(0, dim)

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, x: Tensor, labels: Tensor, groups: Tensor, weight: Tensor | None, shift: Tensor) -> None:
        """Add finite rows x (n, d), n >= 1, with labels and groups (n,) int64 and weights (n,) float64 > 0 or None.

        Args:
            shift: (d,) float64 near to the rows, that sums are taken about if these are the first.
        """
        if not self._slots and not self._new:
            self._shift = shift.clone()
        keys, cell = torch.unique(groups * self.num_classes + labels, return_inverse=True)
        w = torch.ones_like(cell, dtype=torch.float64) if weight is None else weight
        self._add(
            keys,
            torch.bincount(cell, minlength=len(keys)),
            self._weights.new_zeros(len(keys)).index_add_(0, cell, w),
            cell_sums(x, cell, len(keys), weight, self._shift),
        )

    def draft(self) -> GroupSums:
        """Return sums of the same rows that can be added to while these stay as they are."""
        draft = GroupSums.like(self)
        draft._slots, draft._shift = self._slots, self._shift
        draft._counts, draft._weights, draft._sums = self._counts, self._weights, self._sums
        draft._waiting = []
        return draft

    def steps(self) -> list[Step]:
        """Return what makes a draft whole, and takes its place in the memory of the sums that it was drawn from."""
        added = [step for each in self._waiting or () for step in self._adding(*each)]
        return [*added, partial(self._slots.update, self._new), partial(setattr, self, "_waiting", None)]

    def settled(self) -> GroupSums:
        """Return the sums of a draft in memory of their own."""
        made = GroupSums.like(self)
        made._slots, made._shift = self._slots | self._new, self._shift
        made._counts, made._weights, made._sums = self._counts.clone(), self._weights.clone(), self._sums.clone()
        for each in self._waiting or ():
            for step in made._adding(*each):
                step()
        return made

    def class_counts(self) -> Tensor:
        """Return the rows of each class (k,) int64."""
        keys, counts, _, _ = self._sorted()
        return counts.new_zeros(self.num_classes).index_add_(0, keys % self.num_classes, counts)

    def combine(self, other: GroupSums, sign: int = 1) -> None:
        """Add the rows of other sums, or with `sign=-1` take them away."""
        if not other._slots:
            return
        if not self._slots:
            self._shift = other._shift.clone()
        keys, counts, weights, sums = other._sorted()
        moved = sums + weights[:, None] * (other._shift - self._shift)
        self._add(keys, sign * counts, sign * weights, sign * moved)

    def without(self, taken: GroupSums) -> GroupSums:
        """Return what is left without the rows of other sums.

        Raises:
            ValueError: they hold more rows of a group and class than there are.
        """
        left = self.copy()
        left.combine(taken, sign=-1)
        if bool((left._counts < 0).any()):
            raise ValueError("cannot remove rows of a group that has fewer of a class: remove only what was merged")
        # What has no rows has no sums either.
        keys, counts, weights, sums = left._sorted()
        kept = counts > 0
        rest = GroupSums(len(self._shift), self.num_classes, self._shift.device)
        rest._shift = self._shift.clone()
        rest._add(keys[kept], counts[kept], weights[kept], sums[kept])
        return rest

    def cells(self) -> Cells:
        """Return counts and means by group and class."""
        keys, counts, weights, sums = self._sorted()
        return Cells(keys // self.num_classes, keys % self.num_classes, counts, weights, sums / weights[:, None])

    @classmethod
    def like(cls, other: GroupSums) -> GroupSums:
        """Return empty sums of the same kind."""
        return cls(len(other._shift), other.num_classes, other._shift.device)

    def copy(self) -> GroupSums:
        """Return sums that share nothing with these."""
        return GroupSums.of_tensors(self.tensors(), self.num_classes)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file keeps, sorted by group and class."""
        return dict(zip(TENSORS, (*self._sorted(), self._shift.clone()), strict=True))

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor], num_classes: int) -> GroupSums:
        """Return the sums that `tensors` told of.

        Raises:
            ValueError: the tensors are not of such sums.
        """
        keys, counts, weights, sums, shift = (tensors[name] for name in TENSORS)
        dim = shift.shape[0] if shift.ndim == 1 else -1
        if keys.dtype != torch.int64 or counts.dtype != torch.int64 or keys.ndim != 1:
            raise ValueError("the class sums of its groups do not fit each other (keys)")
        wanted = {"keys": (len(keys),), "counts": (len(keys),), "weights": (len(keys),), "sums": (len(keys), dim)}
        wrong = [name for name, shape in wanted.items() if tuple(tensors[name].shape) != shape]
        if wrong or bool((keys.diff() <= 0).any()) or bool((keys < 0).any()):
            raise ValueError(f"the class sums of its groups do not fit each other ({', '.join(wrong) or 'keys'})")
        finite = all(bool(part.isfinite().all()) for part in (weights, sums, shift))
        if not finite or bool((counts <= 0).any()) or bool((weights <= 0).any()):
            raise ValueError("the class sums of its groups are not those of any rows")
        made = cls(dim, num_classes, shift.device)
        made._shift = shift
        made._add(keys, counts, weights, sums)
        return made

    # ------------------------------------------------------------ internal

    def _add(self, keys: Tensor, counts: Tensor, weights: Tensor, sums: Tensor) -> None:
        """Add to the cells of distinct keys, which are made where they are new."""
        slots = [self._slot(key) for key in keys.tolist()]
        self._reserve(len(self._slots) + len(self._new))
        index = torch.tensor(slots, dtype=torch.int64, device=self._shift.device)
        # Every slot occurs once: no order of additions could change a bit.
        added = (index, counts, weights, sums)
        if self._waiting is not None:
            self._waiting.append(added)
            return
        for step in self._adding(*added):
            step()
        self._slots.update(self._new)
        self._new = {}

    def _adding(self, index: Tensor, counts: Tensor, weights: Tensor, sums: Tensor) -> list[Step]:
        parts = ((self._counts, counts), (self._weights, weights), (self._sums, sums))
        return [partial(part.index_add_, 0, index, more) for part, more in parts]

    def _slot(self, key: int) -> int:
        slot = self._slots.get(key)
        return self._new.setdefault(key, len(self._slots) + len(self._new)) if slot is None else slot

    def _reserve(self, cells: int) -> None:
        """Make room for so many cells, twice as many at a time."""
        if cells <= len(self._counts):
            return
        room = max(cells, 2 * len(self._counts))
        for name in ("_counts", "_weights", "_sums"):
            old = getattr(self, name)
            new = old.new_zeros(room, *old.shape[1:])
            new[: len(old)] = old
            setattr(self, name, new)

    def _sorted(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return keys, counts, weights and sums of the cells in the order of their keys, as copies."""
        keys = torch.tensor(list(self._slots), dtype=torch.int64, device=self._shift.device)
        keys, order = keys.sort()
        return keys, self._counts[order], self._weights[order], self._sums[order]
