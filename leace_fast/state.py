"""The sums behind `Moments`: what rows add up to, about a fixed shift, in float64.

Each block of rows is centred about its own rounded mean before it is
multiplied, so that a float32 product loses nothing to a large offset; the
block is then moved to the common shift by the formula of Chan, Golub and
LeVeque (1983). States about different shifts add and subtract in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .reference import add_class_sums, add_lower_product, compute_dtype, panels

SLICE_ELEMENTS = 1 << 16  # elements widened to float64 at a time: they stay in cache
TILE_ROWS = 1024  # centred and multiplied at a time, in one buffer: a fresh one for all rows costs more than the sums
# Squares of float32 numbers outside about 1e-15 .. 1e17 leave its range: such blocks are multiplied in float64.
TINY_SQUARE, HUGE_SQUARE = 1e-30, 1e34


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

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return cls(
            shift=zeros(dim),
            counts=torch.zeros(groups, dtype=torch.int64, device=device),
            weights=zeros(groups),
            squared_weights=zeros(groups),
            sums=zeros(groups, dim),
            second=zeros(groups, dim, dim) if per_group else zeros(dim, dim),
            target_shift=zeros(target_dim),
            target_sums=zeros(target_dim),
            cross=zeros(dim, target_dim),
            target_second=zeros(target_dim, target_dim),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def copy(self) -> State:
        """Return a state that shares nothing with this one."""
        return replace(self, **{name: tensor.clone() for name, tensor in self.tensors().items()})

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
        added = self._add_sums(x, labels, targets, weight)
        if self.second.ndim == 2:
            total = added.sum(0)
            _add_second(self.second, x, weight, self.shift, total)
            return
        for group in labels.unique().tolist():
            member = labels == group
            own = None if weight is None else weight[member]
            _add_second(self.second[group], x[member], own, self.shift, added[group])

    def _add_sums(self, x: Tensor, labels: Tensor, targets: Tensor | None, weight: Tensor | None) -> Tensor:
        """Add counts, weights, sums and target moments; return the sums added, (g, d)."""
        groups = len(self.counts)
        self.counts += torch.bincount(labels, minlength=groups)
        w = torch.ones_like(labels, dtype=torch.float64) if weight is None else weight
        self.weights.index_add_(0, labels, w)
        self.squared_weights.index_add_(0, labels, w * w)
        added = torch.zeros_like(self.sums)
        step = max(SLICE_ELEMENTS // x.shape[1], 1)
        buffer = x.new_empty(min(step, len(x)), x.shape[1], dtype=torch.float64)
        for begin in range(0, len(x), step):
            part = slice(begin, min(begin + step, len(x)))
            rows = buffer[: part.stop - begin].copy_(x[part]).sub_(self.shift)  # exact for rows narrower than float64
            own = None if weight is None else weight[part]
            add_class_sums(added, rows, labels[part], own)
            if targets is not None:
                centred = targets[part].double() - self.target_shift
                weighted = centred if own is None else centred * own[:, None]
                self.cross.addmm_(rows.mT, weighted)
                self.target_sums += weighted.sum(0)
                self.target_second.addmm_(weighted.mT, centred)
        self.sums += added
        return added

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


def _add_second(second: Tensor, x: Tensor, weight: Tensor | None, shift: Tensor, sums: Tensor) -> None:
    """Add the second moment of rows x (n, d) about `shift` to `second`, given their exact `sums` about it."""
    total = float(len(x)) if weight is None else float(weight.sum())
    offset = sums / total  # of the rows' mean from the shift
    product, rest = _block_product(x, (shift + offset), weight)
    for rows, columns in panels(len(second)):
        second[rows, columns] += product[rows, columns]
    # The product was taken about a rounded mean: centre it exactly, then move it to the shift.
    second.addmm_(torch.stack([-rest / total, offset * total], 1), torch.stack([rest, offset]))


def _block_product(x: Tensor, mean: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the lower second moment of `x - mean` and the sums of the very rows that were multiplied."""
    dtype = compute_dtype(x.dtype)
    d = x.shape[1]
    centre = mean.to(dtype)
    product = torch.zeros(d, d, dtype=dtype, device=x.device)
    squares, rest = torch.zeros_like(mean), torch.zeros_like(mean)
    buffer = x.new_empty(min(TILE_ROWS, len(x)), d, dtype=dtype)
    for begin in range(0, len(x), TILE_ROWS):
        part = x[begin : begin + TILE_ROWS]
        tile = torch.sub(part, centre, out=buffer[: len(part)])
        if weight is None:
            rest += tile.sum(0)
        else:
            own = weight[begin : begin + TILE_ROWS]
            rest += own @ tile.double()
            tile.mul_(own.sqrt().to(dtype)[:, None])
        add_lower_product(product, tile)
        if dtype == torch.float64:
            squares += tile.square().sum(0)
    if dtype == torch.float64:
        # A matrix product adds row after row; a sum adds in a tree, which keeps a digit more of each variance.
        product.diagonal().copy_(squares)
    elif _left_range(product.diagonal(), x, centre):
        return _block_product(x.double(), mean, weight)
    return product, rest


def _rounded_mean(x: Tensor) -> Tensor:
    """Return the mean of rows (n, d), rounded to their dtype, as float64."""
    mean = x.mean(0)
    return (mean if bool(mean.isfinite().all()) else x.double().mean(0).to(x.dtype)).double()


def _left_range(squares: Tensor, x: Tensor, centre: Tensor) -> bool:
    """Tell whether a column's squares overflowed or underflowed float32."""
    if not bool((squares < HUGE_SQUARE).all()):
        return True
    small = squares < TINY_SQUARE
    return bool(small.any()) and bool((x[:, small] != centre[small]).any())


def _move_second(second: Tensor, sums: Tensor, weight: Tensor, by: Tensor) -> None:
    """Move a second moment to a shift that lies `by` below the old one, in place."""
    offset = sums / weight
    second.addmm_(torch.stack([-sums, (offset + by) * weight], 1), torch.stack([offset, offset + by]))
