"""`QuadraticFitter`, `QuadraticEraser` and `QuadraticEditor`: each class moved by optimal transport, labels at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._ops import takes_arrays
from ..statistics import Moments
from ._statistics import as_complex, as_real, hermitian
from .groupby import groupby
from .optimal_transport import ot_barycenter, ot_map, ot_midpoint
from .shrinkage import optimal_linear_shrinkage


@dataclass(frozen=True)
class QuadraticEraser:
    """Carries each class to the barycentre of all.

    Attributes:
        class_means: (k, d).
        global_mean: (d,) where the mean of every class goes: that of all rows.
        ot_maps: (k, d, d).
    """

    class_means: Tensor
    global_mean: Tensor
    ot_maps: Tensor

    @classmethod
    @takes_arrays
    def fit(cls, x: Tensor, z: Tensor, **kwargs) -> QuadraticEraser:
        """Return the eraser of rows x (n, d) with labels z (n,); options as in `QuadraticFitter`."""
        return QuadraticFitter.fit(x, z, **kwargs).eraser

    @takes_arrays
    def optimal_transport(self, z: int, x: Tensor) -> Tensor:
        """Return rows x of class z, carried to the barycentre."""
        rows = x.flatten(1)
        return ((rows - self.class_means[z]) @ self.ot_maps[z].mH + self.global_mean).view_as(x)

    @takes_arrays
    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        """Return x (n, d) with labels z (n,) int64, erased."""
        return groupby(x, z).map(self.optimal_transport).coalesce()

    def to(self, device: torch.device | str) -> QuadraticEraser:
        """Return the eraser on another device."""
        return QuadraticEraser(self.class_means.to(device), self.global_mean.to(device), self.ot_maps.to(device))


@dataclass(frozen=True)
class QuadraticEditor:
    """Carries rows of any class to another.

    Attributes:
        class_means: (k, d).
        ot_maps: (k, k, d, d), from class to class.
    """

    class_means: Tensor
    ot_maps: Tensor

    @takes_arrays
    def transport(self, x: Tensor, source_z: int, target_z: int) -> Tensor:
        """Return rows x of one class, carried to another."""
        centred = x - self.class_means[source_z]
        return centred @ self.ot_maps[source_z, target_z].mH + self.class_means[target_z]

    @takes_arrays
    def __call__(self, x: Tensor, source_z: Tensor, target_z: int) -> Tensor:
        """Return x (n, d) with labels source_z (n,) int64, carried to class target_z."""
        return groupby(x, source_z).map(lambda source, rows: self.transport(rows, source, target_z)).coalesce()


class QuadraticFitter:
    """Streams mean and covariance of each class.

    Args:
        x_dim: width of x.
        num_classes: number of classes k, for labels 0..k-1.
        device, dtype: of what is handed out; sums are kept in float64.
        shrinkage: shrink each covariance toward the identity by `optimal_linear_shrinkage`.

    Source: "Quadratic LEACE" of EleutherAI, https://blog.eleuther.ai/oracle-leace/.

    >>> z = torch.arange(400) % 2
    >>> x = torch.randn(400, 3, dtype=torch.float64) * (1 + z[:, None])
    >>> eraser = QuadraticFitter.fit(x, z, shrinkage=False).eraser
    >>> after = QuadraticFitter.fit(eraser(x, z), z, shrinkage=False).sigma_xx
    >>> bool((after[0] - after[1]).abs().max() < 1e-10)
    True
    """

    @classmethod
    @takes_arrays
    def fit(cls, x: Tensor, z: Tensor, **kwargs) -> QuadraticFitter:
        """Return a fitter that has seen rows x (n, d) with labels z (n,)."""
        options = {"device": x.device, "dtype": x.dtype, **kwargs}
        return cls(x.shape[-1], int(z.max()) + 1, **options).update(x, z)

    def __init__(
        self,
        x_dim: int,
        num_classes: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        shrinkage: bool = True,
    ) -> None:
        self.x_dim, self.num_classes, self.shrinkage = x_dim, num_classes, shrinkage
        self.dtype = dtype or torch.get_default_dtype()
        self._moments = Moments(
            x_dim * (2 if self.dtype.is_complex else 1),
            num_classes,
            per_class=True,
            device=torch.get_default_device() if device is None else device,
        )
        self._eraser: QuadraticEraser | None = None

    @takes_arrays
    def update(self, x: Tensor, z: Tensor) -> QuadraticFitter:
        """Add rows x (..., x_dim) with labels z (...), and return self."""
        self._eraser = None
        self._moments.update(as_real(x, self.dtype), z)
        return self

    @takes_arrays
    def update_single(self, x: Tensor, z: int) -> QuadraticFitter:
        """Add rows x (..., x_dim), all of class z, and return self."""
        return self.update(x, torch.full(x.shape[:-1], z, dtype=torch.int64, device=x.device))

    @property
    def eraser(self) -> QuadraticEraser:
        """The eraser of the rows so far; it does not change with later ones.

        Raises:
            ValueError: a class has fewer than two rows.
        """
        if self._eraser is None:
            covariances, shares = self._covariances(), self._moments.target_mean
            if self.num_classes == 2:
                centre = ot_midpoint(covariances[0], covariances[1], *shares.tolist())
            else:
                centre = ot_barycenter(covariances, shares)
            mean = as_complex(self._moments.mean, self.dtype)
            maps = ot_map(covariances, centre)
            self._eraser = QuadraticEraser(self.mean_x, mean.to(self.dtype), maps.to(self.dtype))
        return self._eraser

    def editor(self, device: str | torch.device | None = None) -> QuadraticEditor:
        """Return the maps between all pairs of classes, on a device.

        Raises:
            ValueError: a class has fewer than two rows.
        """
        covariances = self._covariances()
        maps = ot_map(covariances[:, None], covariances).to(self.dtype)
        device = device or self._moments.device
        return QuadraticEditor(self.mean_x.to(device), maps.to(device))

    @property
    def n(self) -> Tensor:
        """Rows of each class (k,), in floating point."""
        return self._moments.class_counts.to(torch.get_default_dtype())

    @property
    def mean_x(self) -> Tensor:
        """Mean of each class (k, x_dim), zeros for a class without rows."""
        if not self._moments.count:
            return torch.zeros(self.num_classes, self.x_dim, dtype=self.dtype, device=self._moments.device)
        return as_complex(self._moments.class_means.nan_to_num(), self.dtype).to(self.dtype)

    @property
    def sigma_xx_(self) -> Tensor:
        """Unnormalised covariance of each class (k, x_dim, x_dim)."""
        counts = self._moments.class_counts[:, None, None]
        return (self._population() * counts).to(self.dtype)

    @property
    def sigma_xx(self) -> Tensor:
        """Covariance of each class (k, x_dim, x_dim), shrunk unless that was declined.

        Raises:
            ValueError: a class has fewer than two rows.
        """
        return self._covariances().to(self.dtype)

    def _covariances(self) -> Tensor:
        counts = self._moments.class_counts
        if bool((counts < 2).any()):
            raise ValueError(f"the classes have {counts.tolist()} rows, expected at least two of each")
        n = counts[:, None, None].double()
        if self.shrinkage:
            return optimal_linear_shrinkage(self._population(), n)
        return self._population() * (n / (n - 1))

    def _population(self) -> Tensor:
        self._moments.check_finite()
        return hermitian(self._moments.class_covariances, self.dtype)
