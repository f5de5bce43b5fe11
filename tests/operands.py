"""Operands of the apply, and the truth in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leace_fast._ops import operators as ops
from leace_fast._ops import reference

needs_kernels = pytest.mark.skipif(not ops.EXTENSION.present, reason=f"extension: {ops.EXTENSION.reason}")


def factors(dim: int, rank: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return `left`, `right` with R L = I, and a mean, in the compute dtype of rows of `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(dim, rank, generator=generator, dtype=torch.float64)
    reader = torch.randn(rank, dim, generator=generator, dtype=torch.float64) + left.mT
    right = torch.linalg.lstsq(reader @ left, reader).solution  # oblique: left @ right is not symmetric
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    compute = reference.compute_dtype(dtype)
    return left.to(compute), right.to(compute), mean.to(compute)


def stacked(erasers: int, dim: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of several erasers, one behind the other."""
    parts = zip(*(factors(dim, rank, dtype, seed) for seed in range(erasers)), strict=True)
    left, right, mean = (torch.stack(part) for part in parts)
    return left, right, mean


def random_rows(*shape: int, dtype: torch.dtype, seed: int = 0, offset: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) + offset).to(dtype)


def exact(x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None) -> Tensor:
    """Return the formula in float64, written out in another order than the code has it."""
    x, left, right = x.double(), left.double(), right.double()
    centre = torch.zeros(x.shape[-1], dtype=torch.float64) if mean is None else mean.double()
    projection = torch.eye(x.shape[-1], dtype=torch.float64) - left @ right
    return (x - centre) @ projection.mT + centre


def assert_as_good_as_torch(out: Tensor, plain: Tensor, truth: Tensor, size: Tensor | None = None) -> None:
    """At most 1.5 times as far off as plain torch in the same dtype, and a last place of the compute dtype.

    That is a last place of the largest entry; or of `size`, of what is added up, where there are too few entries for
    the largest error to be much the same every time.
    """
    assert out.dtype == plain.dtype and out.shape == plain.shape == truth.shape
    if out.numel():
        last_place = torch.finfo(reference.compute_dtype(out.dtype)).eps * (truth if size is None else size).abs().max()
        if out.dtype == torch.float64:
            last_place = 32 * last_place  # the truth is no better than plain torch
        error, allowed = (out.double() - truth).abs().max(), (plain.double() - truth).abs().max()
        assert error <= 1.5 * allowed + last_place, f"off by {error}, plain torch by {allowed}"


def size_of_sums(x: Tensor, left: Tensor, right: Tensor, mean: Tensor) -> Tensor:
    """Return the sum of all magnitudes that are added up for each entry of an erased x (..., d)."""
    coordinates = (x.double().abs() + mean.double().abs()) @ right.double().abs().mT
    return x.double().abs() + coordinates @ left.double().abs().mT
