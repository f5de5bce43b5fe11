"""Rows that need no preparation: the product reads them where they lie, and nothing else shows that it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from cases import Data
from laws import Used, assert_same_bits, settled_bits, within
from torch import Tensor

from leace_fast import Moments
from leace_fast.statistics import _kernels
from leace_fast.triton_kernels import configs
from leace_fast.triton_kernels.rows import Part, Strided

ROWS, DIM = 90, 8


@pytest.fixture(autouse=True, scope="module")
def kernels_on_the_cpu() -> Iterator[None]:
    with patch.object(_kernels, "DEVICES", ["cpu"]), patch.object(configs, "block_rows", lambda dim: ROWS):
        yield


def sample(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, DIM, generator=generator)
    return (x - x.median(0).values).to(dtype), torch.randint(3, (ROWS,), generator=generator)


def added(*parts: tuple[Tensor, Tensor]) -> tuple[Moments, bool]:
    """Add rows; tell whether the tile was written meanwhile."""
    first = Moments(DIM, 3).update(*parts[0])
    first._flush()
    waiting = first._sums.on_device
    assert waiting is not None and waiting._kernels is not None
    tile = waiting._kernels.scratch.tile.fill_(torch.nan)
    moments = Moments(DIM, 3, nonfinite="skip")
    for part in parts:
        moments.update(*part)
    moments._flush()
    return moments, not bool(tile.isnan().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def check_the_tile_is_not_written(dtype: torch.dtype) -> None:
    x, y = sample(dtype)
    moments, written = added((x, y))
    assert not written
    within(moments.covariance - Used(Data(x, y, {"num_classes": 3})).covariance(x.double()), 1e-6, "covariance")


@pytest.mark.slow
def check_the_bits_are_the_same_however_the_rows_lie() -> None:
    """In a batch with a row too many in front, in pieces, in a window of wider rows, and where only a tile will do."""
    x, y = sample()
    expected, _ = added((x, y))
    window = torch.full((ROWS, DIM + 8), torch.nan, dtype=x.dtype)
    window[:, 8:] = x
    turned = x.mT.contiguous().mT
    for parts, wanted in (
        ([(x[:7], y[:7]), (x[7:], y[7:])], False),
        ([(window[:, 8:], y)], False),
        ([(x.view(2, 45, DIM), y.view(2, 45))], False),
        ([(turned, y)], True),
    ):
        moments, written = added(*parts)
        assert written == wanted
        assert_same_bits(settled_bits(moments), settled_bits(expected))


def ignored(x: Tensor, y: Tensor) -> None:
    y[40] = -100


def infinite(x: Tensor, y: Tensor) -> None:
    x[3, 1] = torch.inf


def moved(x: Tensor, y: Tensor) -> None:
    x[:, 5] += 100


def tiny(x: Tensor, y: Tensor) -> None:
    x[:, 0] *= 2.0**-60


@pytest.mark.parametrize("change", [ignored, infinite, moved, tiny])
def check_a_change_is_written(change: Any) -> None:
    x, y = sample()
    change(x, y)
    moments, written = added((x, y))
    assert written
    kept = x.isfinite().all(1) & (y >= 0)
    used = Used(Data(x[kept], y[kept], {"num_classes": 3}))
    error = (moments.covariance - used.covariance(used.x)) / torch.outer(used.spread, used.spread)
    within(error, 1e-6, "covariance")


def check_which_rows_can_be_fetched() -> None:
    """Whole multiples of 16 bytes, apart by the same stride."""
    x = torch.zeros(4, 6, 8, dtype=torch.bfloat16)

    def found(begin: int, rows: int, outer: int = 48, inner: int = 8, column: int = 1, length: int = 6) -> Any:
        view = Part(Strided(x, outer, inner, column), begin, length, rows).fetched(8)
        return None if view is None else (tuple(view.shape), view.stride(0), view.storage_offset())

    assert found(0, 24) == ((24, 8), 8, 0)
    assert found(7, 3) == ((3, 8), 8, 56)
    assert found(4, 4, outer=64) is None and found(0, 6, outer=64) == ((6, 8), 8, 0)
    assert found(1, 2, outer=64, length=1) == ((2, 8), 64, 64)
    assert found(0, 6, inner=12) is None and found(0, 6, inner=0) is None and found(0, 6, column=2) is None
    assert Part(Strided(x[:, :, 1:], 48, 8, 1), 0, 6, 6).fetched(7) is None
