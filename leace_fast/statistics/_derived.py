"""What `Moments` tell: their kind, and means and covariances, derived in float64 from the sums, as copies."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ._group_sums import Cells, GroupSums
from ._kind import Kind, Precision
from ._state import State

PANEL = 256  # rows of the second moment that are read at a time


class Derived(ABC):
    """What follows from a `Kind` and a `State`; every tensor is a new one.

    A property that needs rows raises `ValueError` where there are none, and one
    that needs classes where the targets are real-valued.
    """

    @property
    @abstractmethod
    def _kind(self) -> Kind:
        """Return what the sums are of."""

    @abstractmethod
    def _flush(self) -> State:
        """Return the sums over all rows so far."""

    @abstractmethod
    def _group_sums(self) -> GroupSums | None:
        """Return the class sums by group over all rows so far, if they have groups."""

    @property
    def dim(self) -> int:
        """Width of x."""
        return self._kind.dim

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None for real-valued targets and for rows without labels."""
        return self._kind.num_classes

    @property
    def target_dim(self) -> int | None:
        """Width of real-valued targets, or None for classes and for rows without labels."""
        return self._kind.target_dim

    @property
    def per_class(self) -> bool:
        """Whether each class has a second moment of its own."""
        return self._kind.per_class

    @property
    def precision(self) -> Precision:
        """How float32 rows are multiplied on a GPU."""
        return self._kind.precision

    @property
    def count(self) -> int:
        """Rows used."""
        return int(self.class_counts.sum())

    @property
    def class_counts(self) -> Tensor:
        """Rows of each class (k,) int64; (1,) where there are none."""
        return self._flush().counts.clone()

    @property
    def class_weights(self) -> Tensor:
        """Sum of the weights in each class (k,) float64; the counts where none were given."""
        return self._flush().weights.clone()

    @property
    def cells(self) -> Cells | None:
        """Counts and means of x by group and class, as copies; None where the rows came without groups."""
        sums = self._group_sums()
        return None if sums is None else sums.cells()

    @property
    def num_groups(self) -> int:
        """Number of groups that have rows; 0 where the rows came without groups."""
        cells = self.cells
        return 0 if cells is None else len(cells.ids)

    @property
    def effective_groups(self) -> float:
        """One over the sum of the squared shares of the groups in the weight; 0 where the rows came without groups."""
        cells = self.cells
        return 0.0 if cells is None else cells.effective_groups

    @property
    def means_about_shift(self) -> Tensor:
        """Mean of x in each class less a shift common to all (k, d) float64: small numbers, and so exact ones."""
        state = self._nonempty("means_about_shift", classes=True)
        return state.sums / state.weights[:, None]

    @property
    def total_weight(self) -> float:
        """Sum of the weights; the number of rows where none were given."""
        return float(self._flush().weights.sum())

    @property
    def effective_count(self) -> float:
        """Kish's effective number of rows, (sum w)^2 / sum w^2."""
        squares = float(self._flush().squared_weights.sum())
        return self.total_weight**2 / squares if squares else 0.0

    @property
    def mean(self) -> Tensor:
        """Mean of x (d,) float64."""
        state = self._nonempty("mean")
        return state.shift + self._offset(state)

    @property
    def class_means(self) -> Tensor:
        """Mean of x in each class (k, d) float64, NaN for a class without rows."""
        return self.means_about_shift + self._flush().shift

    @property
    def class_mean_differences(self) -> Tensor:
        """Class mean less overall mean (k, d) float64, formed about the shift: no digit is lost to an offset."""
        return self.means_about_shift - self._offset(self._flush())

    @property
    def variance(self) -> Tensor:
        """Population variance of each column of x (d,) float64, >= 0."""
        return self.scaled_covariance(None).clamp_min(0)

    def scaled_covariance(self, scale: Tensor | None) -> Tensor:
        """Return `diag(scale) covariance diag(scale)` (d, d) float64 of which only the lower triangle counts.

        It takes no more memory than the result.

        Args:
            scale: (d,) float64; None for the diagonal of the covariance (d,) alone.

        Raises:
            ValueError: no rows were added.

        >>> import torch
        >>> from leace_fast import Moments
        >>> moments = Moments(2, 2).update(torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([0, 1]))
        >>> moments.scaled_covariance(None).tolist()
        [1.0, 4.0]
        """
        state = self._nonempty("scaled_covariance")
        offset, total = self._offset(state), self.total_weight
        if scale is None:
            diagonal = state.second.diagonal(dim1=-2, dim2=-1)
            return (diagonal.sum(0) if self.per_class else diagonal) / total - offset.square()
        second = state.second.sum(0) if self.per_class else state.second
        matrix = (second * (scale[:, None] / total)).mul_(scale)
        return matrix.addr_(offset * scale, offset * scale, alpha=-1)

    @property
    def covariance(self) -> Tensor:
        """Population covariance of x (d, d) float64: divided by the total weight."""
        state = self._nonempty("covariance")
        second = state.second.sum(0) if self.per_class else state.second
        return _covariance(second, self._offset(state), self.total_weight)

    def covariance_read(self, readers: Tensor) -> Tensor:
        """Return the covariance (k, k) float64 of what some directions read of x, `R S R'`, without forming S.

        Args:
            readers: R (k, d) float64, the directions.

        Raises:
            ValueError: no rows were added.

        >>> import torch
        >>> from leace_fast import Moments
        >>> moments = Moments(2, 2).update(torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([0, 1]))
        >>> moments.covariance_read(torch.tensor([[0.0, 1.0]], dtype=torch.float64)).tolist()
        [[4.0]]
        """
        state = self._nonempty("covariance_read")
        second = state.second.sum(0) if self.per_class else state.second
        half = readers.new_zeros(len(readers), len(readers))
        for begin in range(0, self.dim, PANEL):  # a triangle is copied by such blocks only, not as a whole
            rows = slice(begin, begin + PANEL)
            own, before = readers[:, rows], readers[:, :begin]
            half.addmm_(own @ second[rows, rows].tril(), own.mT).addmm_(own @ second[rows, :begin], before.mT)
        twice = (readers * second.diagonal()) @ readers.mT
        offset = readers @ self._offset(state)
        return (half + half.mT - twice) / self.total_weight - torch.outer(offset, offset)

    @property
    def class_covariances(self) -> Tensor:
        """Population covariance of x in each class (k, d, d) float64; needs `per_class=True`."""
        if not self.per_class:
            raise ValueError("class covariances were not kept: make the moments with per_class=True")
        state = self._nonempty("class_covariances")
        parts = zip(state.second, self.means_about_shift, state.weights, strict=True)
        return torch.stack([_covariance(second, mean, float(weight)) for second, mean, weight in parts])

    @property
    def cross_covariance(self) -> Tensor:
        """Population covariance of x with the one-hot labels (d, k) or the targets (d, t), float64."""
        state = self._nonempty("cross_covariance")
        total = self.total_weight
        if self.num_classes is None:
            return state.cross / total - torch.outer(self._offset(state), state.target_sums / total)
        shares = state.weights / total
        return (state.sums / total - shares[:, None] * self._offset(state)).mT

    @property
    def target_mean(self) -> Tensor:
        """Share of each class (k,), or mean of the targets (t,), float64."""
        state = self._nonempty("target_mean")
        if self.num_classes is None:
            return state.target_shift + state.target_sums / self.total_weight
        return state.weights / self.total_weight

    @property
    def target_covariance(self) -> Tensor:
        """Population covariance of the one-hot labels (k, k) or the targets (t, t), float64."""
        state = self._nonempty("target_covariance")
        total = self.total_weight
        if self.num_classes is None:
            return _covariance(state.target_second, state.target_sums / total, total)
        shares = state.weights / total
        return shares.diag() - torch.outer(shares, shares)

    def _nonempty(self, name: str, classes: bool = False) -> State:
        if classes and self.num_classes is None:
            held = "no labels" if self.target_dim is None else "real-valued targets, see cross_covariance"
            raise ValueError(f"{name} needs classes: these moments hold {held}")
        state = self._flush()
        if state.is_empty:
            raise ValueError(f"{name} needs rows: none were added, call update(x, y) first")
        return state

    def _offset(self, state: State) -> Tensor:
        """Return the mean of x less the shift."""
        return state.sums.sum(0) / state.weights.sum()


def _covariance(second: Tensor, offset: Tensor, total: float) -> Tensor:
    """Return the full covariance of a second moment whose lower triangle counts."""
    lower = torch.tril(second / total - torch.outer(offset, offset))
    return lower + torch.tril(lower, -1).mT
