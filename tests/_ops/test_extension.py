"""The compiled kernels against plain torch: every dtype, odd shapes, and rows that do not know their neighbours."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leace_fast._ops import extension as _extension
from leace_fast._ops import load_extension, reference

EXTENSION = load_extension()
pytestmark = pytest.mark.skipif(not EXTENSION.present, reason=f"extension: {EXTENSION.reason}")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DIMS = [1, 5, 16, 33, 768]
RANKS = [0, 1, 3, 4, 9, 64]


def project(x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None) -> Tensor:
    return torch.ops.leace_fast.project(x, left, right, mean)


def operands(rows: int, dim: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + dim * 10 + rank)
    factor = reference.compute_dtype(dtype)
    x = torch.randn(rows, dim, generator=generator).to(dtype)
    left = torch.randn(dim, rank, generator=generator, dtype=factor) / max(rank, 1) ** 0.5
    right = torch.randn(rank, dim, generator=generator, dtype=factor) / dim**0.5
    return x, left, right, torch.randn(dim, generator=generator, dtype=factor)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_formula(dtype: torch.dtype, dim: int, rank: int) -> None:
    for rows in (1, 3, 4, 130):
        x, left, right, mean = operands(rows, dim, rank, dtype)
        for centre in (mean, None):
            exact_mean = None if centre is None else centre.double()
            exact = reference.project(x.double(), left.double(), right.double(), exact_mean)
            out = project(x, left, right, centre)
            assert out.dtype == dtype and out.shape == x.shape
            # One rounding to x's dtype, and sums of at most `dim` and `rank` terms in the compute dtype.
            sums = torch.finfo(left.dtype).eps * 8 * (1 + (x.abs().max() + mean.abs().max()).double())
            bound = torch.finfo(dtype).eps / 2 * exact.abs() * 1.01 + sums
            assert ((out.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    for rank in (1, 5, 64):
        x, left, right, mean = operands(67, 100, rank, dtype)
        whole = project(x, left, right, mean)
        for begin, end in ((0, 1), (1, 2), (3, 67), (64, 67), (10, 15)):
            assert torch.equal(project(x[begin:end], left, right, mean), whole[begin:end])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_has_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    x, left, right, mean = operands(67, 100, 5, torch.float32)
    whole = project(x, left, right, mean)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        many = project(x.repeat(50, 1), left, right, mean)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(many, whole.repeat(50, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_index_changes_no_bit(dtype: torch.dtype) -> None:
    """A row has the bits of its eraser alone, whoever its neighbours are, from the first row to the last."""
    for dim, rank, rows in ((100, 3, 50), (1500, 64, 9)):
        x, *_ = operands(rows, dim, rank, dtype)
        erasers = [operands(1, dim, rank, dtype)[1:], *(operands(n, dim, rank, dtype)[1:] for n in (2, 3))]
        left, right, mean = (torch.stack(part) for part in zip(*erasers, strict=True))
        index = torch.randint(-1, 3, (rows,), generator=torch.Generator().manual_seed(1))
        out = torch.ops.leace_fast.project(x, left, right, mean, index)
        for row, number in enumerate(index.tolist()):
            alone = x[row] if number < 0 else project(x[row], *erasers[number])
            assert torch.equal(out[row], alone)
        shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(2))
        again = torch.ops.leace_fast.project(x[shuffled], left, right, mean, index[shuffled])
        assert torch.equal(again, out[shuffled])
        torch.ops.leace_fast.project_(x, left, right, mean, index)
        assert torch.equal(x, out)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_that_divide_ranks_and_columns_change_no_bit(threads: int) -> None:
    x, left, right, mean = operands(4, 3000, 64, torch.float32)
    alone = torch.cat([project(row[None], left[:, :], right, mean) for row in x.repeat(3, 1)])[:4]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in (1, 2, 3, 4):
            assert torch.equal(project(x[:rows], left, right, mean), alone[:rows])
        assert torch.equal(project(x.repeat(9, 1), left, right, mean), alone.repeat(9, 1))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_row_touches_no_other(value: float) -> None:
    x, left, right, mean = operands(9, 40, 6, torch.float32)
    clean = project(x, left, right, mean)
    x[4, 7] = value
    out = project(x, left, right, mean)
    others = [row for row in range(9) if row != 4]
    assert torch.equal(out[others], clean[others])
    assert not out[4].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number_comes_through_unchanged(dtype: torch.dtype) -> None:
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).reshape(64, 1024)
    out = project(x, torch.zeros(1024, 0), torch.zeros(0, 1024), None)
    assert torch.equal(out.isnan(), x.isnan())
    assert torch.equal(out[~x.isnan()], x[~x.isnan()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounds_like_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scales = (1e-8, 1e-6, 1e-4, 1.0, 1e3, 3e4, 1e30)
    edges = torch.tensor([65504.0, 65519.9, 65520.0, 2.0**-25, 1.5 * 2.0**-24, 2.0**-14, 3.4e38, -0.0])
    values = torch.cat([torch.randn(20_000, generator=generator) * scale for scale in scales] + [edges])
    # A single row of zeros about mean -e_0, with R = e_0' and L = -values: the output is `values`, rounded.
    right, mean = torch.zeros(1, len(values)), torch.zeros(len(values))
    right[0, 0], mean[0] = 1, -1
    out = project(torch.zeros(1, len(values), dtype=dtype), -values[:, None], right, mean)
    assert torch.equal(out[0], values.to(dtype))


def test_any_layout_and_leading_shape() -> None:
    x, left, right, mean = operands(24, 32, 5, torch.float32)
    expected = project(x, left, right, mean)
    assert torch.equal(project(x.reshape(2, 3, 4, 32), left, right, mean), expected.reshape(2, 3, 4, 32))
    assert torch.equal(project(x[0], left, right, mean), expected[0])
    assert torch.equal(project(x.mT.contiguous().mT, left, right, mean), expected)
    strided = torch.zeros(24, 64)
    strided[:, ::2] = x
    assert torch.equal(project(strided[:, ::2], left, right, mean), expected)
    assert torch.equal(project(x, left.mT.contiguous().mT, right.mT.contiguous().mT, mean), expected)
    assert project(x[:0], left, right, mean).shape == (0, 32)


def test_refuses_what_does_not_fit() -> None:
    x, left, right, mean = operands(4, 32, 5, torch.float32)
    for wrong in (
        (x[:, :31], left, right, mean),
        (x, left[:, :4], right, mean),
        (x, left, right, mean[:31]),
        (x, left.double(), right.double(), mean.double()),
        (x.double(), left, right, mean),
        (x.int(), left, right, mean),
    ):
        with pytest.raises(RuntimeError, match="project"):
            project(*wrong)


def test_libraries_of_other_sources_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "INTERFACE", _extension.INTERFACE + 1)
    found = _extension.load_extension.__wrapped__()
    assert not found.present and "install again" in found.reason


def test_operators_of_other_sources_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("build_info", "instruction_sets", "cpu_features")
    module = types.SimpleNamespace(**{name: getattr(EXTENSION.module, name) for name in names})
    module.INTERFACE = _extension.INTERFACE + 1
    monkeypatch.setattr(_extension, "INTERFACE", module.INTERFACE)
    monkeypatch.setattr(_extension.importlib, "import_module", lambda name: module)
    found = _extension.load_extension.__wrapped__()
    assert not found.present and "install again" in found.reason and found.module is module


def test_says_how_it_was_built() -> None:
    assert EXTENSION.build["instruction_set"] in ("amx", "avx512bf16", "avx512", "avx2", "baseline")
    assert EXTENSION.build["compiler"] and EXTENSION.build["flags"] and EXTENSION.build["torch"]


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", ["avx2", "baseline"])
def test_every_instruction_set(instruction_set: str) -> None:
    """All of the above on a lesser one than this machine's."""
    if EXTENSION.build["instruction_set"] in (instruction_set, "baseline"):
        pytest.skip("this machine has no lesser one of that name")
    tests = [Path(__file__), Path(__file__).with_name("test_norms.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-k", "not compiles", *map(str, tests)]
    command += ["--hypothesis-profile=quick"]
    environment = os.environ | {"LEACE_FAST_CPU": instruction_set}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    code = "from leace_fast._ops import load_extension; print(load_extension().build['instruction_set'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.stdout.strip() == instruction_set
