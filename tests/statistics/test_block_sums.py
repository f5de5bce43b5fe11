"""Class sums and second moments of blocks of rows, by every kernel that this machine has, against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import leace_fast
from leace_fast import Moments
from leace_fast._ops import load_extension
from leace_fast.statistics import _block_sums as sums

KERNELS = range(sums.LEVEL + 1)
NARROW = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=KERNELS, ids=(load_extension().instruction_sets or ("baseline",))[: sums.LEVEL + 1])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a test with each kernel."""
    monkeypatch.setattr(sums, "LEVEL", request.param)
    return request.param


def added(x: Tensor, labels: Tensor, groups: int, weight: Tensor | None, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a block of rows adds to sums and second moment, which are not zero before."""
    before = torch.arange(groups * x.shape[1], dtype=torch.float64).reshape(groups, -1)
    one, two = before.clone(), torch.full((x.shape[1],) * 2, 3.0, dtype=torch.float64)
    found, products = sums.block_sums(groups, x, labels, weight, shift)
    one += found
    return one - before, torch.tril(products.add_to(two) - 3)


def check(x: Tensor, weight: Tensor | None = None, groups: int = 3) -> float:
    """Hold the sums to float64 rounding and the correlation matrix to the stated bound; return its largest error."""
    n, d = x.shape
    labels = torch.randint(groups, (n,), generator=torch.Generator().manual_seed(n + d))
    shift = x[: n // 2 + 1].double().mean(0).to(x.dtype).double()
    found, second = added(x, labels, groups, weight, shift)

    rows = x.double() - shift
    w = torch.ones(n, dtype=torch.float64) if weight is None else weight
    members = torch.nn.functional.one_hot(labels, groups).double() * w[:, None]
    scale = members.mT @ rows.abs() + rows.abs().amax() * 1e-3 + groups * d * 1e-3
    assert ((found - members.mT @ rows).abs() <= 1e-12 * scale).all()

    total, mean = w.sum(), w @ rows / w.sum()
    spread = (w @ (rows - mean).square() / total).sqrt()
    exact = (rows - mean).mT @ ((rows - mean) * w[:, None])
    centred = second - torch.tril(torch.outer(mean, mean)) * total
    error = (centred - torch.tril(exact)) / total
    unit = torch.where(spread > 1e-12 * (spread + mean.abs()), spread, torch.inf)
    # What is no error of the products: the result itself is rounded to float64, with the shift's distance in it.
    floor = 1e-15 * (1 + torch.outer(mean, mean).abs() + 3 / total)
    error = error.sign() * (error.abs() - floor).clamp_min(0) / torch.outer(unit, unit)
    spectral = float(torch.linalg.matrix_norm(error + torch.tril(error, -1).mT, 2))
    assert spectral <= sums.relative_error(x), f"{spectral:.1e}"
    return float(error.abs().max())


def rows_of(n: int, d: int, dtype: torch.dtype, offset: float = 0.0, seed: int = 0) -> Tensor:
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + offset).to(dtype)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    ("n", "d"),
    [(1, 1), (2, 3), (7, 31), (31, 32), (32, 33), (33, 64), (255, 65), (257, 100), (1023, 17), (1025, 40), (5000, 70)],
)
def test_shapes(kernel: int, dtype: torch.dtype, n: int, d: int) -> None:
    check(rows_of(n, d, dtype))
    check(rows_of(n, d, dtype, 1.0), weight=torch.rand(n, dtype=torch.float64) + 0.01)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("offset", [0.5, 1.5, 2.5, 5.0, 10.0, 30.0, 300.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_offsets(kernel: int, dtype: torch.dtype, offset: float, weighted: bool) -> None:
    """At any distance of the mean; products of few digits are not rounded the same way again and again."""
    weight = torch.rand(4096, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    check(rows_of(4096, 48, dtype, offset), weight)


def test_offsets_beyond_float32(kernel: int) -> None:
    check(rows_of(3000, 20, torch.float32, 2e5))
    check(rows_of(3000, 20, torch.float32) * 1e-3 + 4096)


@pytest.mark.parametrize("dtype", NARROW)
def test_columns_of_every_kind_side_by_side(kernel: int, dtype: torch.dtype) -> None:
    """Each column is centred in its own way: constant, zero, of two values, of an outlier, far off, tiny, large."""
    x = rows_of(2500, 80, torch.float32)
    x[:, 0], x[:, 1], x[:, 2] = 7.25, 0.0, (x[:, 2] > 1).float()
    x[0, 3] = 3000.0
    x[:, 4] += 1000
    x[:, 5:9] *= torch.tensor([1e-4, 1e3, 0.1, 10.0])
    x[:, 40:] = x[:, :40] + 100
    x[:, 79] = 0.1 + 0.6 * (x[:, 79] > 100.0)
    check(x.to(dtype))


def test_a_float32_column_of_two_values_keeps_all_digits(kernel: int) -> None:
    """Rounded to two parts of eight bits, each value would be off by up to 4e-6, the same in every row."""
    x = torch.where(rows_of(4000, 33, torch.float32) > 0, 0.7, 0.1) * torch.linspace(1, 3, 33)
    check(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_bfloat16_holds_beside_rows_that_it_does_not(kernel: int, dtype: torch.dtype) -> None:
    """Panels of columns at zero, one deviation off, three (centred, of more digits) and twenty (centred, of few)."""
    offsets = torch.tensor([0.0, 0.9, 3.0, 20.0]).repeat_interleave(32)
    x = (rows_of(2000, 150, torch.float32) + torch.cat([offsets, torch.linspace(0, 30, 22)])).bfloat16().to(dtype)
    assert check(x) <= 1e-6
    check(x[:1], groups=1)
    check(x[:777, 5:133])


@pytest.mark.parametrize("row", [0, 40, 999])
def test_a_row_of_many_digits_among_rows_of_few(kernel: int, row: int) -> None:
    """Blocks of rows differ in how many bfloat16 parts hold them, and so do panels of columns."""
    x = rows_of(1000, 70, torch.float32).mul(4).round()
    x[row, 5:40:7] = torch.tensor([1 / 3, -2 / 7, 100.1, 1e-3, 4097.25])
    check(x)
    check(x.to(torch.float16))
    check(x.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", NARROW)
def test_weights_of_any_size(kernel: int, dtype: torch.dtype) -> None:
    weight = torch.rand(1500, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    for factor in (1e-99, 1e-30, 3.0, 1e30, 1e99):
        x, labels, shift = rows_of(1500, 40, dtype, 3.0), torch.arange(1500) % 2, torch.full((40,), 3.0).double()
        one, two = added_to_zero(x, labels, weight, shift), added_to_zero(x, labels, weight * factor, shift)
        for a, b in zip(one, two, strict=True):
            assert ((a - b / factor).abs() <= 1e-6 * a.abs().amax()).all()
    skewed = weight * torch.logspace(0, -12, 1500, dtype=torch.float64)
    check(rows_of(1500, 40, dtype, 3.0), skewed)


def added_to_zero(x: Tensor, labels: Tensor, weight: Tensor | None, shift: Tensor) -> tuple[Tensor, Tensor]:
    d = x.shape[1]
    found = torch.zeros(int(labels.max()) + 1, d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    added, products = sums.block_sums(len(found[0]), x, labels, weight, shift)
    return found[0] + added, torch.tril(products.add_to(found[1]))


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_out_of_range_are_formed_in_float64(kernel: int, scale: float, dtype: torch.dtype) -> None:
    """Also in one column alone, and in the second chunk alone."""
    x = rows_of(2048, 40, torch.float32).to(dtype)
    x[1500:, 7] *= scale
    x[:, 8] *= scale
    labels, shift = torch.zeros(2048, dtype=torch.int64), torch.zeros(40, dtype=torch.float64)
    second = added_to_zero(x, labels, None, shift)[1]
    exact = torch.tril(x.double().mT @ x.double())
    root = exact.diagonal().sqrt()
    assert ((second - exact).abs() / torch.outer(root, root)).max() <= sums.relative_error(x)


@pytest.mark.parametrize("dtype", NARROW)
def test_strides(kernel: int, dtype: torch.dtype) -> None:
    plain, labels = rows_of(600, 50, dtype), torch.arange(600) % 3
    shift = torch.zeros(50, dtype=torch.float64)
    expected = added_to_zero(plain, labels, None, shift)
    wide = torch.full((600, 77), torch.nan, dtype=dtype)
    wide[:, 13:63] = plain
    spaced = torch.full((1200, 100), torch.nan, dtype=dtype)
    spaced[::2, ::2] = plain
    for x in (wide[:, 13:63], spaced[::2, ::2], plain.mT.contiguous().mT):
        assert x.stride() != plain.stride()
        for a, b in zip(expected, added_to_zero(x, labels, None, shift), strict=True):
            assert torch.equal(a, b)
    same = plain[:1].expand(600, 50)
    second = added_to_zero(same, labels, None, plain[0].double())[1]
    assert not second.any()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_finite(kernel: int, dtype: torch.dtype, bad: float) -> None:
    x = rows_of(300, 41, dtype)
    x[5, 7] = torch.finfo(dtype).max
    x[6, 7] = torch.finfo(dtype).max
    assert sums.all_finite(x)
    for at in ((0, 0), (299, 40), (150, 33)):
        worse = x.clone()
        worse[at] = bad
        assert not sums.all_finite(worse)
        assert sums.all_finite(worse[:, :0]) and sums.all_finite(worse[:0])


def test_only_the_lower_triangle_changes(kernel: int) -> None:
    if not kernel:
        pytest.skip("plain torch writes whole blocks")
    second = torch.zeros(100, 100, dtype=torch.float64)
    sums.block_sums(1, rows_of(50, 100, torch.float32), torch.zeros(50).long(), None, second[0])[1].add_to(second)
    assert not torch.triu(second, 1).any() and torch.tril(second).ne(0).sum() == 5050


def test_kernels_agree_with_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of a stream, in all: the kernels may be left out, and the results stay within the stated bound."""
    x, y = rows_of(6000, 60, torch.bfloat16, 4.0), torch.arange(6000) % 3
    found = []
    for level in KERNELS:
        monkeypatch.setattr(sums, "LEVEL", level)
        found.append(Moments(60, 3, per_class=True).update(x, y))
    for one in found:
        unit = one.variance.sqrt()
        error = (one.covariance - found[0].covariance) / torch.outer(unit, unit)
        assert torch.linalg.matrix_norm(error, 2) <= 2 * one.relative_error
        assert (one.class_means - found[0].class_means).abs().max() <= 1e-13


BITS = """
import hashlib, sys, torch
from leace_fast import Moments
from leace_fast._ops import load_extension
from leace_fast.statistics import _block_sums as sums
torch.set_num_threads(int(sys.argv[1]))
x = torch.randn(5000, 300, generator=torch.Generator().manual_seed(0)) + torch.linspace(-9, 9, 300)
y, weight = torch.arange(5000) % 7, torch.linspace(0.5, 2, 5000)
for level in range(1, sums.LEVEL + 1):
    sums.LEVEL = level
    digest = hashlib.sha256()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for w in (None, weight):
            moments = Moments(300, 7)
            for begin in range(0, 5000, int(sys.argv[2])):
                part = slice(begin, begin + int(sys.argv[2]))
                moments.update(x[part].to(dtype), y[part], weight=None if w is None else w[part])
            for tensor in moments._flush().tensors().values():
                digest.update(tensor.numpy().tobytes())
    print(digest.hexdigest())
"""


@pytest.mark.slow
def test_bits_depend_neither_on_threads_nor_on_batches() -> None:
    """In processes of their own, for the number of threads is one for the whole process."""
    environment = os.environ | {"PYTHONPATH": str(Path(leace_fast.__file__).parent.parent), "OMP_NUM_THREADS": "4"}
    runs = [(1, 5000), (2, 5000), (4, 640)]
    digests = {
        subprocess.run(
            [sys.executable, "-c", BITS, str(threads), str(batch)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout
        for threads, batch in runs
    }
    assert len(digests) == 1 and len(digests.pop().split()) == sums.LEVEL


def test_bits_depend_not_on_threads() -> None:
    """The same in this process, with the best kernel."""
    x, y = rows_of(3000, 200, torch.float32, 1.0), torch.arange(3000) % 3
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(Moments(200, 3).update(x, y)._flush().tensors())
    finally:
        torch.set_num_threads(before)
    if sums.LEVEL:
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
