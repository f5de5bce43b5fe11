"""The sums behind `Moments`: what rows add up to, about a fixed shift, in float64.

Blocks of rows add up in `_block_sums.py`. States about different shifts add and
subtract by the formula of Chan, Golub and LeVeque (1983).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .._ops import slices
from ._block_sums import add_block


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

    # ---------------------------------------------------------------- rows

    def absorb(self, x: Tensor, labels: Tensor | None, targets: Tensor | None, weight: Tensor | None) -> None:
        """Add rows x (n, d), n >= 1, finite, with labels (n,) in range or targets (n, t), and weights (n,) > 0."""
        if self.is_empty:
            # Rounded to the rows' dtype, so that x - shift is exact where it matters.
            self.shift = _rounded_mean(x)
            if targets is not None:
                self.target_shift = targets.mean(0, dtype=torch.float64)
        if labels is None:
            labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._add_weights(labels, weight)
        if targets is not None:
            self._add_targets(x, targets, weight)
        if self.second.ndim == 2:
            add_block(self.sums, self.second, x, labels, weight, self.shift)
            return
        for group in labels.unique().tolist():
            member = labels == group
            own = None if weight is None else weight[member]
            sums, second = self.sums[group : group + 1], self.second[group]
            add_block(sums, second, x[member], torch.zeros_like(labels[member]), own, self.shift)

    def _add_weights(self, labels: Tensor, weight: Tensor | None) -> None:
        """Add counts, weights and squared weights."""
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        w = torch.ones_like(labels, dtype=torch.float64) if weight is None else weight
        self.weights.index_add_(0, labels, w)
        self.squared_weights.index_add_(0, labels, w * w)

    def _add_targets(self, x: Tensor, targets: Tensor, weight: Tensor | None) -> None:
        """Add the sums of the targets and their moment with x."""
        for part in slices(x):
            centred = targets[part].double() - self.target_shift
            weighted = centred if weight is None else centred * weight[part, None]
            self.cross.addmm_((x[part].double() - self.shift).mT, weighted)
            self.target_sums += weighted.sum(0)
            self.target_second.addmm_(weighted.mT, centred)

    # -------------------------------------------------------------- states

    def combine(self, other: State, sign: int = 1) -> None:
        """Add the rows of another state, or with `sign=-1` take them away."""
        if other.is_empty:
            return
        if self.is_empty:
            for name, tensor in other.copy().tensors().items():
                setattr(self, name, tensor)
            return
        moved = other.about(self.shift, self.target_shift)
        for name, tensor in moved.tensors().items():
            if not name.endswith("shift"):
                getattr(self, name).add_(tensor, alpha=sign)

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


def _rounded_mean(x: Tensor) -> Tensor:
    """Return the mean of rows (n, d), rounded to their dtype, as float64."""
    mean = x.mean(0)
    return (mean if bool(mean.isfinite().all()) else x.double().mean(0).to(x.dtype)).double()


def _move_second(second: Tensor, sums: Tensor, weight: Tensor, by: Tensor) -> None:
    """Move a second moment to a shift that lies `by` below the old one, in place."""
    offset = sums / weight
    second.addmm_(torch.stack([-sums, (offset + by) * weight], 1), torch.stack([offset, offset + by]))
