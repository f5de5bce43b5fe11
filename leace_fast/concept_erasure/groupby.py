"""Rows grouped by a key, and put back in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._ops import takes_arrays


@dataclass(frozen=True)
class GroupedTensor:
    """A tensor cut into groups along a dimension, with what it takes to restore the order.

    Attributes:
        dim: the dimension.
        groups: one tensor a label.
        indices: where each entry of the joined groups came from.
        labels: the label of each group, ascending.
    """

    dim: int
    groups: Sequence[Tensor]
    indices: Tensor
    labels: list[int]

    def coalesce(self, groups: Sequence[Tensor] | None = None) -> Tensor:
        """Join the groups, or tensors derived from them, in the original order."""
        joined = torch.cat(list(self.groups if groups is None else groups), dim=self.dim)
        restore = torch.empty_like(self.indices)
        restore[self.indices] = torch.arange(len(restore), device=restore.device)
        return joined.index_select(self.dim, restore)

    def map(self, fn: Callable[[int, Tensor], Tensor]) -> GroupedTensor:
        """Return the groups that `fn(label, group)` gives."""
        return GroupedTensor(self.dim, [fn(label, group) for label, group in self], self.indices, self.labels)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return iter(zip(self.labels, self.groups, strict=True))


@takes_arrays
def groupby(x: Tensor, key: Tensor, dim: int = 0, *, stable: bool = False) -> GroupedTensor:
    """Cut x into groups of equal key along a dimension; `stable` keeps the order within each.

    Args:
        x: any shape.
        key: int64, one for each entry of x along `dim`.
        dim: the dimension.
        stable: whether rows of a group stay in their order.

    Raises:
        TypeError: key is not int64.
        ValueError: key is not one-dimensional or of another length.

    >>> grouped = groupby(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 0, 1]), stable=True)
    >>> [(label, group.tolist()) for label, group in grouped]
    [(0, [2.0]), (1, [1.0, 3.0])]
    >>> grouped.map(lambda label, group: group + label).coalesce().tolist()
    [2.0, 2.0, 4.0]
    """
    if key.dtype != torch.int64:
        raise TypeError(f"key has dtype {key.dtype}, expected torch.int64: convert it, as by key.long()")
    if key.shape != (x.shape[dim],):
        raise ValueError(f"key has shape {tuple(key.shape)}, expected {(x.shape[dim],)}: one key for each entry of x")
    ordered, indices = key.sort(stable=stable)
    labels, counts = ordered.unique_consecutive(return_counts=True)
    groups = x.index_select(dim, indices).split(counts.tolist(), dim=dim)
    return GroupedTensor(dim, groups, indices, labels.tolist())
