"""The factors of an eraser: checked, owned, never changed, and bound to the kernels that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from .._ops import Bound, compute_dtype
from .._schema import NOTHING, OBJECT, TEXT, Schema, integer, one_of
from ._arguments import destination, factor_of
from ._compose import Factors
from ._frozen import Frozen
from ._report import Report

if TYPE_CHECKING:
    from typing_extensions import Self

LARGE = 2.0**100  # of a factor's numbers in float32


class Factored(Frozen):
    """Two factors of low rank and the point between them; the arguments are those of `Eraser`."""

    _kind = "eraser"
    _schema = Schema(
        {
            "dim": integer(1),
            "rank": integer(0),
            "dtype": one_of("float32", "float64"),
            "method": TEXT,
            "site": TEXT | NOTHING,
            "report": OBJECT | NOTHING,
        },
        [
            {
                "left": ((dtype,), ("dim", "rank")),
                "right": ((dtype,), ("rank", "dim")),
                "mean": ((dtype,), ("dim",)),
                "mean_solve": (("F64",), ("dim",)),
            }
            for dtype in ("F32", "F64")
        ],
        optional=("mean", "mean_solve"),
        in_header=("dim", "rank"),
    )

    @torch.inference_mode(False)  # factors made inside inference mode must serve outside it too
    def __init__(
        self,
        left: Tensor | numpy.ndarray,
        right: Tensor | numpy.ndarray,
        mean: Tensor | numpy.ndarray | None = None,
        *,
        method: str = "custom",
        report: Report | None = None,
        site: str | None = None,
        mean_solve: Tensor | numpy.ndarray | None = None,
    ) -> None:
        left, right = factor_of(left), factor_of(right)
        mean = None if mean is None else factor_of(mean)
        mean_solve = None if mean is None or mean_solve is None else factor_of(mean_solve)
        if left.ndim != 2 or right.shape != left.shape[::-1]:
            raise ValueError(f"left {tuple(left.shape)} and right {tuple(right.shape)}, expected (d, k) and (k, d)")
        for name, vector in (("mean", mean), ("mean_solve", mean_solve)):
            if vector is not None and vector.shape != left.shape[:1]:
                raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected {tuple(left.shape[:1])}")
        # Factors are never held in fewer digits than float32: a rounded factor leaves some of the concept behind.
        dtype = compute_dtype(left.dtype)

        def own(part: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return part.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)

        # Both factors lie by rank, as the kernels read them: any other layout would be copied at every call.
        factors = (own(left.mT).mT, own(right), None if mean is None else own(mean))
        self._mean_solve = None if mean_solve is None else own(mean_solve, torch.float64)
        if not all(part is None or bool(part.isfinite().all()) for part in (*factors, self._mean_solve)):
            raise ValueError("a factor holds NaN or Inf, expected finite numbers")
        self._factors: Factors = factors
        self.method, self.report, self.site = method, report, site
        self._bound: dict[Any, Bound] = {}
        self._frozen = True

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bound": {}}  # the devices of where it is loaded may be others

    @property
    def left(self) -> Tensor:
        """The directions that are removed (d, k)."""
        return self._factors[0].clone()

    @property
    def right(self) -> Tensor:
        """How much of each is read from x (k, d)."""
        return self._factors[1].clone()

    @property
    def mean(self) -> Tensor | None:
        """The point that stays where it is (d,), or None for the origin."""
        return None if self._factors[2] is None else self._factors[2].clone()

    @property
    def mean_solve(self) -> Tensor | None:
        """`Sxx^-1 mean` in float64 (d,), or None: the method kept none."""
        return None if self._mean_solve is None else self._mean_solve.clone()

    @property
    def dim(self) -> int:
        """Width of x."""
        return self._factors[0].shape[0]

    @property
    def rank(self) -> int:
        """Rank of what is removed."""
        return self._factors[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the factors are held in: float32 or float64."""
        return self._factors[0].dtype

    @property
    def device(self) -> torch.device:
        """Device that the factors are held on."""
        return self._factors[0].device

    def __repr__(self) -> str:
        site = f" at {self.site}" if self.site else ""
        kind = "affine, keeps the mean" if self._factors[2] is not None else "linear"
        kept = f", not erased: {len(self.report.not_erased)}" if self.report and self.report.not_erased else ""
        return f"{type(self).__name__}({self.method}{site}: rank {self.rank} of {self.dim}, {kind}, {self.dtype}{kept})"

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return the same map, whose factors are held on a device and in float32 or float64; either may come first.

        Args:
            device: where to; None leaves the factors where they are.
            dtype: torch.float32 or torch.float64; None leaves it as it is.

        Raises:
            ValueError: dtype is another: factors are never rounded further, whatever dtype x has.

        Source: the call of `torch.Tensor.to`.

        >>> from leace_fast import Eraser
        >>> Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1]).to("cpu", torch.float64).dtype
        torch.float64
        """
        device, dtype = destination(device, dtype)
        left, right, mean = _moved(self._factors, device, dtype or self.dtype)
        names = {**self._names, "mean_solve": None if self._mean_solve is None else self._mean_solve.to(device)}
        return type(self)(left, right, mean, **names)  # type: ignore[arg-type]

    def with_site(self, site: str | None) -> Self:
        """Return the same map with the name of the place in a model that it belongs to.

        Args:
            site: such a name as `find_sites` gives, or None for no place.

        Source: docs/scrubbing.md, where sites are named.

        >>> from leace_fast import Eraser
        >>> Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1]).with_site("model.norm").site
        'model.norm'
        """
        return type(self)(*self._factors, **{**self._names, "site": site})

    @property
    def _names(self) -> dict[str, Any]:
        return {"method": self.method, "report": self.report, "site": self.site, "mean_solve": self._mean_solve}

    def _tensors(self) -> dict[str, Tensor]:
        names, parts = ("left", "right", "mean", "mean_solve"), (*self._factors, self._mean_solve)
        return {name: part for name, part in zip(names, parts, strict=True) if part is not None}

    def _facts(self) -> dict[str, Any]:
        dtype = str(self.dtype).removeprefix("torch.")
        return {"dim": self.dim, "rank": self.rank, "dtype": dtype, "method": self.method, "site": self.site}

    def _bound_for(self, x: Tensor) -> Bound:
        """Return the map for rows of the dtype and on the device of x."""
        key = x.dtype if x.is_cpu else (x.dtype, x.device)  # a device costs more to look up than the rows to erase
        found = self._bound.get(key)
        if found is None:
            to = (x.device, compute_dtype(x.dtype))
            with torch.inference_mode(False):
                found = self._bound[key] = Bound(*_moved(self._factors, *to))
        return found

    def _factors_for(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the factors on the device and in the compute dtype of x."""
        return self._bound_for(x).factors


def _moved(factors: Factors, device: Any, dtype: torch.dtype) -> Factors:
    """Return factors on a device and in a dtype, the same map: ranks that leave float32 are scaled by a power of two.

    Raises:
        ValueError: no scale brings them into its range, as the columns of x differ in size by too much.
    """
    left, right, mean = factors
    if dtype == torch.float32 and right.dtype == torch.float64 and right.numel():
        most = right.abs().amax(1)
        if float(most.max()) > LARGE:
            scale = torch.where(most > LARGE, torch.exp2(-torch.log2(most / LARGE).ceil()), 1.0)
            left, right = left / scale, right * scale[:, None]
    moved = tuple(None if part is None else part.to(device, dtype) for part in (left, right, mean))
    if dtype != right.dtype and not all(part is None or bool(part.isfinite().all()) for part in moved):
        raise ValueError(
            "the factors of this eraser leave the range of float32: the columns of x differ in size by too much, "
            "scale them before fitting, or erase rows in float64"
        )
    return moved  # type: ignore[return-value]
