"""`Eraser`: a frozen affine map of low rank that removes a concept from rows."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import Tensor

from .._files import load_tensors, save_tensors
from .._ops import Bound, check_project, compute_dtype
from ._report import Report

Factors = tuple[Tensor, Tensor, Tensor | None]

FILE_NAME = "eraser.safetensors"


class Eraser(ModelHubMixin, library_name="leace-fast", tags=["concept-erasure"]):
    """The map `e(x) = x - ((x - mean) R') L'`; what is given is copied, what is handed out is a copy.

    Rows are computed in float64 if they are float64 and in float32 otherwise,
    and rounded once to their own dtype.

    Args:
        left: (d, k), the directions that are removed.
        right: (k, d), how much of each is read from x.
        mean: (d,) the point that stays where it is, or None for the origin.
        method: name of the method that made it.
        report: how it was fitted.
        site: name of the place in a model that it belongs to.
        mean_solve: (d,) `Sxx^-1 mean`, which `without_offset` needs; kept in float64.

    Raises:
        ValueError: the shapes do not fit, or a factor is not finite.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 1.

    >>> import torch
    >>> eraser = Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1])
    >>> eraser(torch.ones(2, 3)).tolist()
    [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """

    @torch.inference_mode(False)  # factors made inside inference mode must serve outside it too
    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        mean: Tensor | None = None,
        *,
        method: str = "custom",
        report: Report | None = None,
        site: str | None = None,
        mean_solve: Tensor | None = None,
    ) -> None:
        left, right = torch.as_tensor(left), torch.as_tensor(right)
        mean = None if mean is None else torch.as_tensor(mean)
        mean_solve = None if mean is None or mean_solve is None else torch.as_tensor(mean_solve)
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
        self._factors: tuple[Tensor, Tensor, Tensor | None] = factors
        self.method, self.report, self.site = method, report, site
        self._bound: dict[Any, Bound] = {}
        self._frozen = True

    def __setattr__(self, name: str, value: object) -> None:
        if self.__dict__.get("_frozen"):
            raise AttributeError(f"an eraser is frozen: cannot set {name!r}, make another Eraser instead")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an eraser is frozen: cannot delete {name!r}, make another Eraser instead")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bound": {}}  # the devices of where it is loaded may be others

    # ------------------------------------------------------------ what it is

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
        return f"Eraser({self.method}{site}: rank {self.rank} of {self.dim}, {kind}, {self.dtype}{kept})"

    # ----------------------------------------------------------- what it does

    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    @overload
    def __call__(self, x: numpy.ndarray) -> numpy.ndarray: ...
    def __call__(self, x: Tensor | numpy.ndarray) -> Tensor | numpy.ndarray:
        """Return the erased rows, of the shape and dtype of x (..., d): a tensor, or an array of NumPy for one.

        Raises:
            TypeError: x is not floating.
            ValueError: the last dimension of x is not `dim`.
        """
        if isinstance(x, Tensor):
            return self._bound_for(x)(x)
        if isinstance(x, numpy.ndarray):
            return self(torch.from_numpy(x)).numpy()
        raise TypeError(f"x is a {type(x).__name__}, expected a tensor or an array of NumPy")

    def apply_(self, x: Tensor) -> Tensor:
        """Erase rows x (..., d) in place and return x; its memory may be strided but not overlap.

        Raises:
            TypeError: x is not floating.
            ValueError: the last dimension of x is not `dim`, or x is a leaf that requires a gradient.
        """
        if x.requires_grad and x.is_leaf:
            raise ValueError("x is a leaf that requires a gradient and cannot change in place: call eraser(x) instead")
        with torch.no_grad() if x.requires_grad else contextlib.nullcontext():
            return self._bound_for(x).apply_(x)

    def isolate(self, x: Tensor) -> Tensor:
        """Return the erased part of x (..., d), that is `((x - mean) R') L'`.

        Raises:
            TypeError: x is not floating.
            ValueError: the last dimension of x is not `dim`.
        """
        left, right, mean = self._factors_for(x)
        check_project(x, left, right, mean)
        centred = x.to(left.dtype) if mean is None else x.to(left.dtype) - mean
        return ((centred @ right.mT) @ left.mT).to(x.dtype)

    def scaled(self, strength: float) -> Eraser:
        """Return an eraser of another strength: 0 changes nothing, 1 erases, 2 reflects, below 0 amplifies.

        >>> import torch
        >>> Eraser(torch.eye(2)[:, :1], torch.eye(2)[:1]).scaled(2.0)(torch.ones(2)).tolist()
        [-1.0, 1.0]
        """
        left, right, mean = self._factors
        return Eraser(left * float(strength), right, mean, **self._names)

    def without_offset(self, max_cost_ratio: float = 1.1) -> Eraser:
        """Return the least-squares linear map that erases the same, for weights that take no bias.

        It whitens with the uncentred second moment M = Sxx + mean mean', whose inverse follows from that of Sxx by
        Sherman and Morrison's formula, so that `mean_solve` is all it needs. The mean is not kept.

        Args:
            max_cost_ratio: refuse a map that changes x more than so many times the affine one.

        Raises:
            ValueError: the cost is above that, or the eraser keeps no `mean_solve`.

        Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 3.

        >>> import torch
        >>> mean = torch.tensor([0.0, 1.0])
        >>> eraser = Eraser(torch.eye(2)[:, :1], torch.eye(2)[:1], mean, mean_solve=mean)
        >>> eraser.without_offset()(torch.ones(2)).tolist()
        [0.0, 1.0]
        """
        if self._factors[2] is None:
            return self
        ratio, linear = self._linear()
        if not ratio <= max_cost_ratio:
            raise ValueError(
                f"without an offset the eraser changes x {ratio:.3g} times as much as the affine one, at most "
                f"{max_cost_ratio} is allowed: keep the offset, or raise max_cost_ratio"
            )
        left, right = self._factors[0].double(), self._factors[1].double()
        if left.any():  # what rounding left: both must read the same of L
            linear = (right @ left) @ torch.linalg.solve(linear @ left, linear)
        report = self.report and replace(self.report, change=self.report.change * ratio, cost_ratio=ratio)
        return Eraser(left.to(self.dtype), linear.to(self.dtype), **{**self._names, "report": report})

    @property
    def linear_cost_ratio(self) -> float:
        """Mean squared change of x by `without_offset` over that by this eraser; 1 if it has no offset.

        Raises:
            ValueError: the eraser keeps no `mean_solve`.
        """
        return 1.0 if self._factors[2] is None else self._linear()[0]

    def _linear(self) -> tuple[float, Tensor]:
        """The cost ratio of the best linear map, and its R (k, d) but for rounding."""
        if self._mean_solve is None:
            raise ValueError(
                f"an eraser by {self.method!r} keeps no mean_solve, which the best linear map needs: fit it with "
                "affine=False, or by leace"
            )
        left, right, mean = (part.double() for part in self._factors if part is not None)
        solve = self._mean_solve
        read = right @ mean  # equal to L' Sxx^-1 mean: R is L' Sxx^-1
        total = 1 + mean @ solve
        rest = torch.clamp_min(total - read @ read, 1)  # at least 1 but for rounding
        linear = right - torch.outer(read, solve / total)  # L' M^-1
        linear = linear + torch.outer(read, read @ linear) / rest
        affine_cost, offset_cost = float(left.square().sum()), float((left @ read).square().sum() / rest)
        return 1 + offset_cost / affine_cost if offset_cost else 1.0, linear

    def compose(self, then: Eraser) -> Eraser:
        """Return one eraser that does what this one does and, after it, what another one does: `then(self(x))`.

        The rank is that of the whole, at most the sum of both.

        Raises:
            TypeError: `then` is no eraser.
            ValueError: the widths differ, or the two hold the rows on parallel planes, which leaves no fixed point.

        >>> import torch
        >>> e = torch.eye(3, dtype=torch.float64)
        >>> both = Eraser(e[:, :1], e[:1]).compose(Eraser(e[:, 1:2], e[1:2]))
        >>> both.rank, both(torch.ones(3)).tolist()
        (2, [0.0, 0.0, 1.0])
        """
        if not isinstance(then, Eraser):
            raise TypeError(f"got {type(then).__name__}, expected an Eraser")
        if then.dim != self.dim:
            raise ValueError(f"the widths differ: {self.dim} here, {then.dim} there, expected erasers of the same x")
        dtype, device = torch.promote_types(self.dtype, then.dtype), self.device
        parts = (eraser.to(device, torch.float64) for eraser in (self, then))
        left, right, mean = composed(*((part.left, part.right, part.mean) for part in parts))
        return Eraser(left, right, mean, method=f"{self.method} + {then.method}", site=self.site).to(dtype=dtype)

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Eraser:
        """Return an eraser whose factors are held on a device and in float32 or float64; either may come first.

        Raises:
            ValueError: dtype is another: factors are never rounded further, whatever dtype x has.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                f"dtype is {dtype}, expected torch.float32 or torch.float64: x may have any floating dtype"
            )
        left, right, mean = (part if part is None else part.to(device, dtype or self.dtype) for part in self._factors)
        names = {**self._names, "mean_solve": None if self._mean_solve is None else self._mean_solve.to(device)}
        return Eraser(left, right, mean, **names)  # type: ignore[arg-type]

    def with_site(self, site: str | None) -> Eraser:
        """Return the same eraser with the name of the place in a model that it belongs to."""
        return Eraser(*self._factors, **{**self._names, "site": site})

    @property
    def _names(self) -> dict[str, Any]:
        return {"method": self.method, "report": self.report, "site": self.site, "mean_solve": self._mean_solve}

    def _bound_for(self, x: Tensor) -> Bound:
        """Return the map for rows of the dtype and on the device of x."""
        key = x.dtype if x.is_cpu else (x.dtype, x.device)  # a device costs more to look up than the rows to erase
        found = self._bound.get(key)
        if found is None:
            to = (x.device, compute_dtype(x.dtype))
            with torch.inference_mode(False):
                factors = (None if part is None else part.to(*to) for part in self._factors)
                found = self._bound[key] = Bound(*factors)  # type: ignore[arg-type]
        return found

    def _factors_for(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the factors on the device and in the compute dtype of x."""
        return self._bound_for(x).factors

    # ----------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically, with a checksum; of the data it tells no more than the mean."""
        names, parts = ("left", "right", "mean", "mean_solve"), (*self._factors, self._mean_solve)
        tensors = {name: part for name, part in zip(names, parts, strict=True) if part is not None}
        header = {
            "dim": self.dim,
            "rank": self.rank,
            "dtype": str(self.dtype).removeprefix("torch."),
            "method": self.method,
            "site": self.site,
            "report": self.report.to_dict() if self.report else None,
        }
        save_tensors(path, "eraser", tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Eraser:
        """Read what `save` wrote, to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or no eraser.
        """
        tensors, header = load_tensors(path, "eraser")
        report = Report.from_dict(header["report"]) if header["report"] else None
        parts = {name: tensor.to(device) for name, tensor in tensors.items()}
        return cls(**parts, method=header["method"], report=report, site=header["site"])

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory / FILE_NAME)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Eraser:
        if Path(model_id).is_dir():
            return cls.load(Path(model_id) / FILE_NAME)
        known = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        given: dict[str, Any] = {name: options[name] for name in known if options.get(name) is not None}
        return cls.load(hf_hub_download(model_id, FILE_NAME, **given))


def composed(first: Factors, then: Factors) -> Factors:
    """Return the factors of two erasures, one after the other, in float64.

    With `a = R1 (x - m1)` the second one reads `R2 (x - m2) - R2 L1 a`: the factors are stacked, brought to full rank,
    and the mean is a point that both leave where it is.
    """
    (left, right, mean), (next_left, next_right, next_mean) = first, then
    seen = next_right @ left
    origin = torch.zeros(len(left), dtype=left.dtype, device=left.device)
    means = [origin if one is None else one for one in (mean, next_mean)]
    held = torch.cat([right @ means[0], next_right @ means[1] - seen @ (right @ means[0])])
    size = torch.cat([right.abs(), next_right.abs() + seen.abs() @ right.abs()])  # of what cancels
    right = torch.cat([right, next_right - seen @ right])
    q, t = torch.linalg.qr(torch.cat([left, next_left], 1))
    u, s, v = torch.linalg.svd(t @ right, full_matrices=False)
    size = t.abs() @ size
    kept = s > len(left) * 2.0**-52 * size.norm()
    offset = u.mT @ (t @ held)
    size = size @ (means[0].abs() + means[1].abs())
    if offset[~kept].norm() > 1e-9 * size.norm():
        raise ValueError(
            "the two erasers hold the rows on planes that are parallel and apart, so that no point stays where it is: "
            "erase both concepts at once, or about the same mean"
        )
    left, right, offset = q @ u[:, kept] * s[kept], v[kept], offset[kept] / s[kept]
    if mean is None and next_mean is None:
        return left, right, None
    # Of all fixed points, that nearest to the means: a far one would cost digits.
    return left, right, means[0] + right.mT @ (offset - right @ means[0])
