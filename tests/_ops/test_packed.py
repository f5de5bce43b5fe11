"""Factors packed for matrix units: as good as without, and still the same bits for a row however it comes."""

from __future__ import annotations

import pytest
import torch
from operands import assert_as_good_as_torch, exact, factors, random_rows
from torch import Tensor

from leace_fast import Eraser
from leace_fast._ops import operators as ops
from leace_fast._ops import reference

RANK, SHORT = 40, (torch.bfloat16, torch.float16)


def dense(dim: int, rank: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    left, right, mean = factors(dim, rank, dtype, seed)
    return left.mT.contiguous().mT, right.contiguous(), mean


def packed(left: Tensor, right: Tensor) -> Tensor:
    made = ops.pack(left, right)
    if made is None:
        pytest.skip("no kernel for packed factors on this processor")
    return made


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize(("dim", "rank"), [(64, 32), (100, 33), (300, 64), (768, 70), (4100, 64)])
def test_follows_the_formula(dtype: torch.dtype, dim: int, rank: int) -> None:
    left, right, mean = dense(dim, rank, dtype)
    tiles = packed(left, right)
    for rows in (0, 1, 5, 16, 33):
        x = random_rows(rows, dim, dtype=dtype)
        for centre in (mean, None):
            out = ops.project(x, left, right, centre, packed=tiles)
            assert_as_good_as_torch(out, reference.project(x, left, right, centre), exact(x, left, right, centre))


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_what_is_left_of_the_coordinates(dtype: torch.dtype) -> None:
    """The parts of the factors keep 16 bits: the concept leaves no more than the rounding of the rows does."""
    left, right, mean = dense(768, 64, dtype)
    x = random_rows(200, 768, dtype=dtype, offset=3.0)
    y = ops.project(x, left, right, mean, packed=packed(left, right))
    plain = ops.project(x, left, right, mean)
    leak, of_rounding = (float(((part.double() - mean) @ right.double().mT).norm()) for part in (y, plain))
    assert leak <= 1.1 * of_rounding


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_a_row_has_the_same_bits_however_it_comes(dtype: torch.dtype) -> None:
    eraser = Eraser(*factors(1500, RANK, dtype))
    x = random_rows(200, 1500, dtype=dtype)
    bound = eraser._bound_for(x)
    if bound.packed is None:
        pytest.skip("no kernel for packed factors on this processor")
    whole = eraser(x)
    assert not torch.equal(whole, ops.project(x, *bound.factors)), "packed factors are in use"
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for size in (1, 2, 15, 16, 17, 130):
                for begin in (0, 1, 60):
                    part = slice(begin, begin + size)
                    assert torch.equal(eraser(x[part]), whole[part]), (count, size)
                    assert torch.equal(ops.project(x[part], *bound.factors, packed=bound.packed), whole[part])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(eraser.apply_(x.clone()), whole)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(eraser(x[order]), whole[order])
    assert torch.equal(eraser(torch.cat([x, x], -1)[:, :1500]), whole)


def test_each_row_meets_its_own_eraser() -> None:
    parts = [dense(200, RANK, torch.bfloat16, seed) for seed in range(3)]
    tiles = torch.cat([packed(left, right) for left, right, _ in parts])
    left = torch.stack([left.mT for left, _, _ in parts]).mT
    right, mean = (torch.stack([part[i] for part in parts]) for i in (1, 2))
    x = random_rows(50, 200, dtype=torch.bfloat16)
    index = torch.randint(-1, 3, (50,), generator=torch.Generator().manual_seed(2))
    y = ops.project(x, left, right, mean, index, packed=tiles)
    assert torch.equal(y[index == -1], x[index == -1])
    for i, (left_i, right_i, mean_i) in enumerate(parts):
        alone = ops.project(x, left_i, right_i, mean_i, packed=ops.pack(left_i, right_i))
        assert torch.equal(y[index == i], alone[index == i])


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_touches_no_other(dtype: torch.dtype, bad: float) -> None:
    left, right, mean = dense(96, RANK, dtype)
    tiles = packed(left, right)
    x = random_rows(40, 96, dtype=dtype)
    clean = ops.project(x, left, right, mean, packed=tiles)
    x[7, 5] = bad
    y = ops.project(x, left, right, mean, packed=tiles)
    others = torch.arange(40) != 7
    assert torch.equal(y[others], clean[others]) and not y[7].isfinite().any()


def test_large_and_small_numbers() -> None:
    left, right, mean = dense(96, RANK, torch.bfloat16)
    largest = torch.finfo(torch.bfloat16).max
    for scale in (largest / 1e6, 1e-30):
        x = random_rows(4, 96, dtype=torch.float32).mul(scale).bfloat16()
        y = ops.project(x, left, right, packed=packed(left, right))
        assert_as_good_as_torch(y, reference.project(x, left, right), exact(x, left, right, None))


def test_gradients_and_registration() -> None:
    left, right, mean = dense(48, RANK, torch.bfloat16)
    tiles = packed(left, right)
    x = random_rows(3, 48, dtype=torch.bfloat16)
    leaf = x.clone().requires_grad_()
    ops.project(leaf, left, right, mean, packed=tiles).float().sum().backward()
    assert leaf.grad is not None
    expected = torch.ones(48) - (left @ right).sum(0)
    torch.testing.assert_close(leaf.grad.float(), expected.expand(3, 48), rtol=1e-2, atol=1e-2)
    torch.library.opcheck(torch.ops.leace_fast.project.default, (leaf, left, right, mean, None, tiles))
    torch.library.opcheck(torch.ops.leace_fast.project_.default, (x, left, right, mean, None, tiles))


def test_refuses_what_does_not_fit() -> None:
    left, right, _ = dense(48, RANK, torch.bfloat16)
    tiles = packed(left, right)
    x = random_rows(3, 48, dtype=torch.bfloat16)
    for wrong in (tiles[:-1], tiles.view(torch.int8), tiles.repeat_interleave(2)[::2]):
        with pytest.raises(RuntimeError, match="packed does not fit"):
            ops.project(x, left, right, packed=wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_rows_do_without(dtype: torch.dtype) -> None:
    x = random_rows(5, 96, dtype=dtype)
    left, right, mean = dense(96, RANK, dtype)
    tiles = packed(left, right) if dtype == torch.float32 else ops.pack(left, right)
    assert torch.equal(ops.project(x, left, right, mean, packed=tiles), ops.project(x, left, right, mean))
    assert (tiles is None) == (dtype == torch.float64)


def test_where_nothing_is_packed() -> None:
    assert ops.pack(*dense(64, 8, torch.bfloat16)[:2]) is None, "other kernels serve small ranks as well"
    assert ops.pack(torch.zeros(64, 40), torch.zeros(40, 64)) is None, "left does not lie by rank"
