"""The sums behind `Moments`: what rows add up to, about a fixed shift, in float64.

Rows are added in `_draft.py`. States about different shifts add and subtract by
the formula of Chan, Golub and LeVeque (1983).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ._block_sums import Wide


@dataclass
class State:
    """Sums over rows, by group (the classes, or one group of all rows); all float64 but the counts."""

    shift: Tensor  # (d,)
    counts: Tensor  # (g,) int64: rows
    weights: Tensor  # (g,) sum of w
    squared_weights: Tensor  # (g,) sum of w^2
    sums: Tensor  # (g, d) sum of w (x - shift)
    second: Tensor  # (d, d), or (g, d, d) by group: sum of w (x - shift)(x - shift)'; only the lower triangle counts
    target_shift: Tensor  # (t,)
    target_sums: Tensor  # (t,) sum of w (z - target_shift)
    cross: Tensor  # (d, t) sum of w (x - shift)(z - target_shift)'
    target_second: Tensor  # (t, t)

    @classmethod
    def empty(cls, dim: int, groups: int, target_dim: int, per_group: bool, device: torch.device) -> State:
        """Return the state of no rows."""
        return cls(
            **{
                name: torch.zeros(shape, dtype=torch.int64 if name == "counts" else torch.float64, device=device)
                for name, shape in cls.shapes(dim, groups, target_dim, per_group).items()
            }
        )

    @classmethod
    def shapes(cls, dim: int, groups: int, target_dim: int, per_group: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors by name."""
        return {
            "shift": (dim,),
            "counts": (groups,),
            "weights": (groups,),
            "squared_weights": (groups,),
            "sums": (groups, dim),
            "second": (groups, dim, dim) if per_group else (dim, dim),
            "target_shift": (target_dim,),
            "target_sums": (target_dim,),
            "cross": (dim, target_dim),
            "target_second": (target_dim, target_dim),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def copy(self) -> State:
        """Return a state that shares nothing with this one."""
        return replace(self, **{name: tensor.clone() for name, tensor in self.tensors().items()})

    def fingerprint(self) -> str:
        """Return a digest of the content."""
        sha = hashlib.sha256()
        for tensor in (self.counts, self.sums, self.second, self.cross):
            sha.update(tensor.cpu().contiguous().numpy().data)
        return sha.hexdigest()

    @property
    def is_empty(self) -> bool:
        """Whether no row was added."""
        return not bool(self.counts.any())

    # -------------------------------------------------------------- states

    def combined(self, other: State, sign: int = 1) -> State:
        """Return the state with the rows of another, or with `sign=-1` without them."""
        if other.is_empty:
            return replace(self)
        if self.is_empty:
            return other.copy()
        moved = other.about(self.shift, self.target_shift)
        sums = {
            name: torch.add(getattr(self, name), tensor, alpha=sign)
            for name, tensor in moved.tensors().items()
            if not name.endswith("shift")
        }
        both = replace(self, **sums)
        both.check_range()
        return both

    def check_range(self, waiting: Sequence[Wide] = ()) -> None:
        """Raise ValueError if a sum of squares has left the range of float64, or will with products that wait."""
        total = float(self.second.diagonal(dim1=-2, dim2=-1).sum()) + sum(
            float(products.product.trace()) for products in waiting
        )
        for name, trace in (("x", total), ("y", float(self.target_second.trace()))):
            if not math.isfinite(trace):
                raise ValueError(
                    f"the sums of the squares of {name} leave the range of float64: multiply {name} by a constant first"
                )

    def pooled(self) -> State:
        """Return the sums of the same rows as one group, without targets."""
        second = self.second.sum(0) if self.second.ndim == 3 else self.second.clone()
        nothing = State.empty(len(self.shift), 1, 0, False, self.shift.device)
        return replace(
            nothing,
            shift=self.shift.clone(),
            counts=self.counts.sum(0, keepdim=True),
            weights=self.weights.sum(0, keepdim=True),
            squared_weights=self.squared_weights.sum(0, keepdim=True),
            sums=self.sums.sum(0, keepdim=True),
            second=second,
        )

    def about(self, shift: Tensor, target_shift: Tensor) -> State:
        """Return the same sums about another shift."""
        by = self.shift - shift
        target_by = self.target_shift - target_shift
        if not by.any() and not target_by.any():
            return self
        total, weight = self.sums.sum(0), self.weights.sum()
        moved = self.copy()
        moved.shift, moved.target_shift = shift, target_shift
        moved.sums += self.weights[:, None] * by
        if self.second.ndim == 2:
            _move_second(moved.second, total, weight, by)
        else:
            for group in self.weights.nonzero().flatten().tolist():
                _move_second(moved.second[group], self.sums[group], self.weights[group], by)
        moved.target_sums += weight * target_by
        moved.cross += torch.outer(total, target_by) + torch.outer(by, moved.target_sums)
        _move_second(moved.target_second, self.target_sums, weight, target_by)
        return moved


def _move_second(second: Tensor, sums: Tensor, weight: Tensor, by: Tensor) -> None:
    """Move a second moment to a shift that lies `by` below the old one, in place."""
    offset = sums / weight
    second.addmm_(torch.stack([-sums, (offset + by) * weight], 1), torch.stack([offset, offset + by]))
