"""Erasers that are told the label of each row: an affine map for each class, or a linear one of real-valued targets."""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor

from .._ops import compute_dtype
from .._schema import Schema
from ..statistics import IGNORE
from ._arguments import Rows, checked_labels, checked_rows, factor_of, tensor_of
from ._labelled import FIELDS, FLOATS, Labelled
from ._report import Report

ROWS_AT_ONCE = 8192


class ConditionalEraser(Labelled):
    """The map `e(x, y) = (x - source[y]) M[y]' + goal[y]`; what is given is copied.

    A second label may tell where to: then source, goal and maps have an axis for each. Rows are computed in float64
    if they are float64 and in float32 otherwise, and rounded once to their own dtype.

    Args:
        source: (k, d) or (k, k, d), what the rows of each class are centred about.
        goal: of the same shape, where that point goes.
        maps: (k, d, d) or (k, k, d, d), or None for translations alone.
        method: name of the method that made it.
        report: how it was fitted.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, appendix F, for translations; "Quadratic LEACE" of
        EleutherAI, https://blog.eleuther.ai/oracle-leace/, for maps.

    >>> import torch
    >>> eraser = ConditionalEraser(torch.tensor([[0.0], [4.0]]), torch.tensor([[2.0], [2.0]]))
    >>> eraser(torch.tensor([[1.0], [5.0]]), torch.tensor([0, 1])).tolist()
    [[3.0], [3.0]]
    """

    _kind = "conditional_eraser"
    _schema = Schema(
        FIELDS,
        [
            {"source": (FLOATS, (*k, "d")), "goal": (FLOATS, (*k, "d")), "maps": (FLOATS, (*k, "d", "d"))}
            for k in (("k",), ("k", "k"))
        ],
        optional=("maps",),
        filled=("k", "d"),
    )

    @torch.inference_mode(False)
    def __init__(
        self,
        source: Tensor | numpy.ndarray,
        goal: Tensor | numpy.ndarray,
        maps: Tensor | numpy.ndarray | None = None,
        *,
        method: str = "custom",
        report: Report | None = None,
    ) -> None:
        source, goal, maps = factor_of(source), factor_of(goal), None if maps is None else factor_of(maps)
        if source.ndim not in (2, 3) or source.shape != goal.shape or len(set(source.shape[:-1])) > 1:
            raise ValueError(
                f"source {tuple(source.shape)} and goal {tuple(goal.shape)}, expected (k, d) twice, or (k, k, d)"
            )
        if maps is not None and maps.shape != (*source.shape, source.shape[-1]):
            raise ValueError(f"maps have shape {tuple(maps.shape)}, expected {(*source.shape, source.shape[-1])}")
        self._keep("a map holds", source=source, goal=goal, maps=maps)
        self.method, self.report = method, report
        self._moving = self._labels_that_move()
        self._frozen = True

    @property
    def source(self) -> Tensor:
        """What the rows of each class are centred about, (k, d) or (k, k, d)."""
        return self._parts["source"].clone()

    @property
    def goal(self) -> Tensor:
        """Where that point goes, of the same shape."""
        return self._parts["goal"].clone()

    @property
    def maps(self) -> Tensor | None:
        """The matrix of each class, (k, d, d) or (k, k, d, d), or None for translations."""
        return self._parts["maps"].clone() if "maps" in self._parts else None

    @property
    def dim(self) -> int:
        """Width of x."""
        return self._parts["source"].shape[-1]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._parts["source"].shape[0]

    def __repr__(self) -> str:
        kind = "affine" if "maps" in self._parts else "translations"
        labels = " to ".join(str(size) for size in self._parts["source"].shape[:-1])
        return f"ConditionalEraser({self.method}: {labels} classes, {self.dim} dimensions, {kind})"

    def __call__(self, x: Rows, *labels: Tensor | numpy.ndarray | int) -> Rows:
        """Return the rows x (..., d) mapped by their class, in their dtype; label -100 leaves a row as it is.

        Args:
            x: (..., d), floating, a tensor or an array of NumPy, which gives an array.
            labels: y (...), integers; then where to, (...) or one integer, if there are maps between classes.

        Raises:
            TypeError: x is not floating, or labels are not integers.
            ValueError: a shape does not fit, or a label is no class.
        """
        if not isinstance(x, Tensor):
            return self(tensor_of(x), *labels).numpy()
        shape = self._parts["source"].shape
        if len(labels) != len(shape) - 1:
            raise ValueError(f"got {len(labels)} labels a row, expected {len(shape) - 1}")
        checked_rows(x, self.dim)
        index, kept = self._index(x, labels)
        dtype = compute_dtype(x.dtype)
        parts = {name: part.flatten(0, len(shape) - 2).to(x.device, dtype) for name, part in self._parts.items()}
        rows = x.reshape(-1, self.dim).to(dtype)
        out = x.reshape(-1, self.dim).clone()
        if "maps" not in parts:
            moved = (parts["goal"] - parts["source"])[index]
            return torch.where(kept[:, None], (rows + moved).to(x.dtype), out).view(x.shape)
        for label in self._moving.intersection(index[kept].unique().tolist()):
            members = (kept & (index == label)).nonzero().flatten()
            for some in members.split(ROWS_AT_ONCE):
                mapped = (rows[some] - parts["source"][label]) @ parts["maps"][label].mT + parts["goal"][label]
                out[some] = mapped.to(x.dtype)
        return out.view(x.shape)

    def _labels_that_move(self) -> set[int]:
        """Return the labels whose map is not the identity: rows of the others stay as they are, to the bit."""
        moving = (self._parts["source"] != self._parts["goal"]).any(-1)
        if "maps" in self._parts:
            eye = torch.eye(self.dim, dtype=self._parts["maps"].dtype, device=self._parts["maps"].device)
            moving |= (self._parts["maps"] != eye).flatten(-2).any(-1)
        return set(moving.flatten().nonzero().flatten().tolist())

    def _index(self, x: Tensor, labels: tuple[Tensor | numpy.ndarray | int, ...]) -> tuple[Tensor, Tensor]:
        """Return the index of each row's map (n,), and which rows are to change (n,)."""
        count = math.prod(x.shape[:-1])
        index = torch.zeros(count, dtype=torch.int64, device=x.device)
        kept = torch.ones(count, dtype=torch.bool, device=x.device)
        for label in labels:
            y = checked_labels(label, x, self.num_classes)
            kept &= y != IGNORE
            index = index * self.num_classes + y.clamp_min(0)
        return index, kept


class TargetEraser(Labelled):
    """The map `e(x, z) = x - (z - mean) B'` of rows whose real-valued targets are known; what is given is copied.

    Args:
        coefficients: (d, t) what x changes by with each target.
        mean: (t,) of the targets.
        method: name of the method that made it.
        report: how it was fitted.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, appendix F.

    >>> import torch
    >>> eraser = TargetEraser(torch.tensor([[2.0]]), torch.tensor([1.0]))
    >>> eraser(torch.tensor([[5.0]]), torch.tensor([[3.0]])).tolist()
    [[1.0]]
    """

    _kind = "target_eraser"
    _schema = Schema(FIELDS, [{"coefficients": (FLOATS, ("d", "t")), "mean": (FLOATS, ("t",))}], filled=("d", "t"))

    @torch.inference_mode(False)
    def __init__(
        self,
        coefficients: Tensor | numpy.ndarray,
        mean: Tensor | numpy.ndarray,
        *,
        method: str = "custom",
        report: Report | None = None,
    ) -> None:
        coefficients, mean = factor_of(coefficients), factor_of(mean)
        if coefficients.ndim != 2 or mean.shape != coefficients.shape[1:]:
            raise ValueError(
                f"coefficients {tuple(coefficients.shape)}, mean {tuple(mean.shape)}, expected (d, t), (t,)"
            )
        self._keep("a coefficient or a mean is", coefficients=coefficients, mean=mean)
        self.method, self.report = method, report
        self._frozen = True

    @property
    def coefficients(self) -> Tensor:
        """What x changes by with each target (d, t)."""
        return self._parts["coefficients"].clone()

    @property
    def mean(self) -> Tensor:
        """Mean of the targets (t,)."""
        return self._parts["mean"].clone()

    @property
    def dim(self) -> int:
        """Width of x."""
        return self._parts["coefficients"].shape[0]

    def __repr__(self) -> str:
        return f"TargetEraser({self.method}: {len(self.mean)} targets, {self.dim} dimensions)"

    def __call__(self, x: Rows, z: Tensor | numpy.ndarray) -> Rows:
        """Return x (..., d) less what its targets z (..., t) explain, of the shape and dtype of x.

        Args:
            x: (..., d), floating, a tensor or an array of NumPy, which gives an array.
            z: (..., t), numbers.

        Raises:
            TypeError: x is not floating, or z is neither a tensor nor an array.
            ValueError: a shape does not fit.
        """
        if not isinstance(x, Tensor):
            return self(tensor_of(x), z).numpy()
        z = tensor_of(z, "z")
        if not x.is_floating_point():
            raise TypeError(f"x has dtype {x.dtype}, expected a floating one")
        if x.shape[-1:] != (self.dim,) or z.shape != (*x.shape[:-1], len(self._parts["mean"])):
            raise ValueError(
                f"x has shape {tuple(x.shape)} and z {tuple(z.shape)}, expected (..., {self.dim}) and "
                f"(..., {len(self._parts['mean'])})"
            )
        dtype = compute_dtype(x.dtype)
        coefficients, mean = (part.to(x.device, dtype) for part in self._parts.values())
        explained = (z.to(x.device, dtype) - mean) @ coefficients.mT
        return (x.to(dtype) - explained).to(x.dtype)
