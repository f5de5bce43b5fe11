"""`QuantileNormalizer`: rows whose coordinates are carried from the quantiles of their class to other quantiles."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from .._ops import compute_dtype
from .._schema import Schema
from ..statistics import IGNORE
from ._arguments import Rows, checked_labels, checked_rows, factor_of, tensor_of
from ._labelled import FIELDS, FLOATS, Labelled
from ._report import Report


class QuantileNormalizer(Labelled):
    """The map that gives a row of class y, at each coordinate, the goal's value of the same quantile.

    `e(x, y) = x + (F_target^-1(F_y(x V)) - x V) V'`, with tables of quantiles, straight in between and moved along
    beyond their ends. What is given is copied.

    Args:
        source: (k, m, q) quantiles of each class and coordinate at even probabilities from 0 to 1, never falling.
        goal: of the same shape, those that they are carried to.
        directions: (d, m) orthonormal axes V of the coordinates, or None for the columns of x themselves.
        method: name of the method that made it.
        report: how it was fitted.

    Raises:
        ValueError: the shapes do not fit, quantiles fall, or a number is not finite.

    Source: Belrose et al. 2024, https://arxiv.org/abs/2402.04362, section 3.

    >>> import torch
    >>> source = torch.tensor([[[0.0, 1.0]], [[4.0, 6.0]]])
    >>> eraser = QuantileNormalizer(source, source.flip(0))
    >>> eraser(torch.tensor([[0.5], [4.0]]), torch.tensor([0, 1])).tolist()
    [[5.0], [0.0]]
    """

    _kind = "quantile_normalizer"
    _schema = Schema(
        FIELDS,
        [
            {
                "source": (FLOATS, ("k", "m", "q")),
                "goal": (FLOATS, ("k", "m", "q")),
                "directions": (FLOATS, ("d", "m")),
            }
        ],
        optional=("directions",),
        filled=("k", "m", "q", "d"),
    )

    @torch.inference_mode(False)
    def __init__(
        self,
        source: Tensor | numpy.ndarray,
        goal: Tensor | numpy.ndarray,
        directions: Tensor | numpy.ndarray | None = None,
        *,
        method: str = "custom",
        report: Report | None = None,
    ) -> None:
        source, goal = factor_of(source), factor_of(goal)
        directions = None if directions is None else factor_of(directions)
        if source.ndim != 3 or source.shape != goal.shape or source.shape[-1] < 2:
            raise ValueError(f"source {tuple(source.shape)}, goal {tuple(goal.shape)}, expected (k, m, q) twice, q > 1")
        if directions is not None and (directions.ndim != 2 or directions.shape[1] != source.shape[1]):
            raise ValueError(f"directions have shape {tuple(directions.shape)}, expected (d, {source.shape[1]})")
        self._keep("a quantile or a direction is", source=source, goal=goal, directions=directions)
        if bool((self._parts["source"].diff() < 0).any() or (self._parts["goal"].diff() < 0).any()):
            raise ValueError("the quantiles fall, expected them in rising order")
        self.method, self.report = method, report
        self._frozen = True

    @property
    def dim(self) -> int:
        """Width of x."""
        return self._parts["directions"].shape[0] if "directions" in self._parts else self._parts["source"].shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._parts["source"].shape[0]

    @property
    def source(self) -> Tensor:
        """Quantiles of each class and coordinate (k, m, q)."""
        return self._parts["source"].clone()

    @property
    def goal(self) -> Tensor:
        """Quantiles that they are carried to (k, m, q)."""
        return self._parts["goal"].clone()

    def __repr__(self) -> str:
        k, m, q = self._parts["source"].shape
        return f"QuantileNormalizer({self.method}: {k} classes, {m} of {self.dim} coordinates, {q} quantiles)"

    def __call__(self, x: Rows, y: Tensor | numpy.ndarray | int) -> Rows:
        """Return the rows x (..., d) carried by their classes y (...), in their dtype; label -100 leaves a row alone.

        Args:
            x: (..., d), floating, a tensor or an array of NumPy, which gives an array.
            y: (...), integers, or one integer for all rows.

        Raises:
            TypeError: x is not floating, or labels are not integers.
            ValueError: a shape does not fit, or a label is no class.
        """
        if not isinstance(x, Tensor):
            return self(tensor_of(x), y).numpy()
        checked_rows(x, self.dim)
        labels = checked_labels(y, x, self.num_classes)
        dtype = compute_dtype(x.dtype)
        parts = {name: part.to(x.device, dtype) for name, part in self._parts.items()}
        rows, out = x.reshape(-1, self.dim).to(dtype), x.reshape(-1, self.dim).clone()
        axes = parts.get("directions")
        for label in labels[labels != IGNORE].unique().tolist():
            members = (labels == label).nonzero().flatten()
            some = rows[members]
            before = some if axes is None else some @ axes
            moved = interpolated(before.mT, parts["source"][label], parts["goal"][label]).mT - before
            out[members] = (some + (moved if axes is None else moved @ axes.mT)).to(x.dtype)
        return out.view(x.shape)


def interpolated(values: Tensor, source: Tensor, goal: Tensor) -> Tensor:
    """Return values (m, n) carried along the lines from source to goal quantiles (m, q); beyond the ends, moved.

    >>> interpolated(torch.tensor([[0.5, 3.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[10.0, 30.0]])).tolist()
    [[20.0, 32.0]]
    """
    inside = values.clamp(source[:, :1], source[:, -1:]).contiguous()
    # Among equal quantiles, halfway between the first and the last: a value that many rows share goes to their middle.
    first = torch.searchsorted(source.contiguous(), inside)
    last = torch.searchsorted(source.contiguous(), inside, right=True) - 1
    below, above = (torch.minimum(first, last).clamp_min(0), torch.maximum(first, last))
    start, end = source.gather(1, below), source.gather(1, above)
    share = torch.where(end > start, (inside - start) / torch.where(end > start, end - start, 1.0), 0.5)
    goal_start, goal_end = goal.gather(1, below), goal.gather(1, above)
    return goal_start + share * (goal_end - goal_start) + (values - inside)
