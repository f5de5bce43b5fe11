"""Labelled rows that can be gone over again and again, for the methods that moments are not enough for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..statistics import IGNORE
from ._concept import hidden_columns
from ._fitted import warn_of


@dataclass(frozen=True)
class Summary:
    """What one pass tells, in float64.

    Attributes:
        counts: (k,) rows of each class.
        mean: (d,) of all rows.
        deviation: (d,) of each column.
        class_means: (k, d), NaN for a class without rows.
    """

    counts: Tensor
    mean: Tensor
    deviation: Tensor
    class_means: Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    @property
    def majority(self) -> float:
        """Share of the most frequent class."""
        return float(self.counts.max() / self.counts.sum())

    def hidden(self) -> tuple[str, ...]:
        """Warn of columns that vary by less than rounding, in which nothing is erased, and return a line on them."""
        hidden = hidden_columns(self.deviation, self.mean)
        warn_of(hidden)
        return hidden


class RowStream:
    """Batches (x, y) as float64 rows (n, d) and integer labels (n,), without those labelled -100, checked.

    Args:
        batches: pairs of x (..., d), floating, and y (...), integers or bools; going over it again starts anew.

    Raises:
        TypeError: it can be gone over once only, as a generator can.
    """

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        if isinstance(batches, Iterator) or not isinstance(batches, Iterable):
            raise TypeError(
                f"got {type(batches).__name__}, expected batches (x, y) that can be gone over again and again: a list, "
                "a DataLoader, or a class with __iter__"
            )
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        width = None
        for batch in self._batches:
            if not isinstance(batch, Sequence) or len(batch) != 2:
                raise TypeError(f"a batch is a {type(batch).__name__}, expected pairs (x, y) of rows and their labels")
            x, y = batch
            if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not x.is_floating_point():
                raise TypeError("expected batches (x, y) of tensors, x floating and y of integers")
            if y.is_floating_point() or y.is_complex():
                raise TypeError(f"y has dtype {y.dtype}, expected integers: these methods take classes")
            if x.ndim < 1 or x.shape[:-1] != y.shape or width not in (None, x.shape[-1]):
                raise ValueError(
                    f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}, expected (..., {width or 'd'}) and (...)"
                )
            width = x.shape[-1]
            kept = y != IGNORE
            rows, labels = x.detach()[kept].double(), y[kept].long()
            if not bool(rows.isfinite().all()):
                raise ValueError("x holds NaN or Inf, expected finite rows: leave them out first")
            if bool((labels < 0).any()):
                raise ValueError(f"a label is {int(labels.min())}, expected 0 or above, or -100 for rows to leave out")
            if len(rows):
                yield rows, labels

    def summary(self) -> Summary:
        """Return what one pass tells.

        Raises:
            ValueError: no rows, or rows of one class only.
        """
        counts, shift, sums, squares = torch.zeros(0, dtype=torch.int64), None, torch.zeros(0), torch.zeros(0)
        for x, y in self:
            if shift is None:
                # About a point near the rows, so that an offset costs no digit.
                shift = x.mean(0)
                sums, squares = x.new_zeros(0, x.shape[1]), torch.zeros_like(shift)
            missing = int(y.max()) + 1 - len(counts)
            if missing > 0:
                counts = torch.cat([counts, counts.new_zeros(missing)])
                sums = torch.cat([sums, sums.new_zeros(missing, sums.shape[1])])
            counts += torch.bincount(y, minlength=len(counts)).cpu()
            sums.index_add_(0, y, x - shift)
            squares += (x - shift).square().sum(0)
        total = int(counts.sum())
        if int((counts > 0).sum()) < 2:
            raise ValueError(f"{total} rows of {int((counts > 0).sum())} classes, expected rows of two or more")
        assert shift is not None
        mean = sums.sum(0) / total
        deviation = (squares / total - mean.square()).clamp_min(0).sqrt()
        return Summary(counts, shift + mean, deviation, shift + sums / counts[:, None].to(sums))
