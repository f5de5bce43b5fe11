"""The CUDA kernels: emulated from their own sources, compiled by nvcc where there is one, run where there is a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import cuda_emulation as emulation
import pytest
import torch
from cuda_emulation import A100, B200, H200, Device
from torch import Tensor
from torch.nn import functional

from leace_fast import Eraser
from leace_fast._ops import operators as ops
from leace_fast._ops import reference
from leace_fast.erasers import EraserTable

needs_compiler = pytest.mark.skipif(emulation.COMPILER is None, reason="no g++ to compile the emulator with")
pytestmark = needs_compiler

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
nightly = pytest.mark.nightly
# rows, dim, rank: a lone row, odd everything, widths that fill no octet, no group and no part, several clusters.
SHAPES = [(19, 40, 3), (3, 33, 7), (5, 1096, 9)]
NIGHTLY_SHAPES = [
    (1, 64, 1),
    (70, 96, 16),
    (17, 1001, 64),
    (33, 1000, 64),
    (130, 2048, 33),
    (2, 4096, 64),
    (3, 16384, 8),
    (40, 520, 24),
]
SHAPES += [pytest.param(*shape, marks=nightly) for shape in NIGHTLY_SHAPES]


def operands(rows: int, dim: int, rank: int, dtype: torch.dtype, erasers: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows * 1000 + dim * 10 + rank)
    stack = (erasers,) if erasers else ()
    x = torch.randn(rows, dim, generator=generator).to(dtype)
    left = torch.randn(*stack, dim, rank, generator=generator) / rank**0.5
    right = torch.randn(*stack, rank, dim, generator=generator) / dim**0.5
    return x, left, right, torch.randn(*stack, dim, generator=generator)


def exact(x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None = None) -> Tensor:
    return reference.project(x.double(), left.double(), right.double(), None if mean is None else mean.double())


def rms(error: Tensor) -> float:
    return float(error.double().square().mean().sqrt())


# --- against float64 ---


@pytest.mark.parametrize("device", [H200, A100], ids=["clusters", "one block"])
@pytest.mark.parametrize(("rows", "dim", "rank"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_float64(dtype: torch.dtype, rows: int, dim: int, rank: int, device: Device) -> None:
    x, left, right, mean = operands(rows, dim, rank, dtype)
    truth = exact(x, left, right, mean)
    out, _ = emulation.erase(x, left, right, mean, device=device)
    # One rounding to x's dtype, and what the terms and float32 sums leave out of the coordinates, through L.
    terms = 2**-15 if x.element_size() == 2 else 2**-21
    bound = torch.finfo(dtype).eps / 2 * truth.abs() * 1.01 + terms * (1 + left.abs().sum(dim=1))
    assert ((out.double() - truth).abs() <= bound).all()
    assert rms(out - truth) <= 1.5 * max(rms(reference.project(x, left, right, mean) - truth), 2**-26)


def split(values: Tensor, terms: int) -> list[Tensor]:
    """Return bfloat16 terms that sum to float32 values, as the kernels take them."""
    out = []
    for _ in range(terms):
        out.append(values.bfloat16().float())
        values = values - out[-1]
    return [term.double() for term in out]


def multiply(a: Tensor, b: Tensor, terms: int) -> Tensor:
    """Return a b' without the products below the last place."""
    left, right = split(a, terms), split(b, terms)
    pairs = [(i, j) for i in range(terms) for j in range(terms) if i + j < terms]
    return sum((left[i] @ right[j].mT for i, j in pairs), torch.zeros(()))


@pytest.mark.parametrize("outlier", [1.0, 100.0])
@pytest.mark.parametrize(
    ("dim", "rank"), [(768, 1), pytest.param(4096, 8, marks=nightly), pytest.param(4096, 64, marks=nightly)]
)
def test_what_the_terms_leave_of_a_gap(dim: int, rank: int, outlier: float) -> None:
    """The arithmetic alone, without the rounding of y: how much of the gap between two class means remains."""
    generator = torch.Generator().manual_seed(dim + rank)
    scale = torch.ones(dim)
    scale[:8] = outlier
    right = torch.randn(rank, dim, generator=generator) / scale / dim**0.5
    left = torch.linalg.pinv(right.double()).float()
    mean = torch.randn(dim, generator=generator) * scale
    gap = left @ torch.randn(rank, generator=generator)
    rows = torch.randn(2, 1000, dim, generator=generator) * scale + mean
    rows[1] += 5 * gap
    rows = rows.bfloat16().float()
    before = (rows[1].double().mean(0) - rows[0].double().mean(0)) @ right.double().mT
    for terms, most in ((1, 1e-2), (2, 1e-6), (3, 1e-8)):
        coordinates = [multiply(one - mean, right, terms).float() for one in rows]
        erased = [one.double() - multiply(c, left, terms) for one, c in zip(rows, coordinates, strict=True)]
        after = (erased[1].mean(0) - erased[0].mean(0)) @ right.double().mT
        assert after.norm() <= most * before.norm()
        assert terms > 1 or after.norm() >= 1e-5 * before.norm()  # what the further terms are for


@pytest.mark.parametrize(("dtype", "left_over"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-4)], ids=str)
def test_nothing_of_the_concept_is_left(dtype: torch.dtype, left_over: float) -> None:
    """Rows far from zero along L, erased to x' with R (x' - mean) = 0, but for the rounding of x'."""
    x, left, _, mean = operands(16, 256, 4, torch.float32)
    right = torch.linalg.pinv(left)
    rows = (30 * torch.randn(16, 4, generator=torch.Generator().manual_seed(0)) @ left.mT + x).to(dtype)
    out, _ = emulation.erase(rows, left, right, mean)
    truth = exact(rows, left, right, mean)
    unrounded = (out.double() - truth.to(dtype).double()) @ right.double().mT
    if dtype != torch.float32:  # rows that round to the neighbour of the nearest number differ by a place of it
        unrounded = unrounded.median(dim=0).values
    assert unrounded.abs().max() <= left_over * (rows.double() @ right.double().mT).abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_from_the_origin(dtype: torch.dtype) -> None:
    """`x - mean` is formed before it is multiplied: an offset of a thousand costs only the rounding of the rows."""
    x, left, right, mean = operands(8, 128, 4, torch.float32)
    mean = mean + 1000
    rows = (x + mean).to(dtype)
    out, _ = emulation.erase(rows, left, right, mean)
    truth = exact(rows, left, right, mean)
    error = (out.double() - truth).abs().max()
    assert error <= 1.02 * torch.finfo(dtype).eps / 2 * 2**10 + 2e-4 * (dtype == torch.float16)


def test_without_a_mean() -> None:
    x, left, right, _ = operands(5, 72, 5, torch.float32)
    assert (emulation.erase(x, left, right)[0].double() - exact(x, left, right)).abs().max() < 1e-6


# --- a row knows nothing of the others ---


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(dtype, marks=nightly) for dtype in (torch.float32, torch.float16))],
    ids=str,
)
def test_a_row_has_the_same_bits_in_any_batch_on_any_device(dtype: torch.dtype) -> None:
    x, left, right, mean = operands(70, 1032, 9, dtype)
    few = Device(90, 1, 227 << 10, 228 << 10)  # so few multiprocessors that a block takes all the rows it can
    whole, _ = emulation.erase(x, left, right, mean, device=few)
    tiles = {(emulation.plan(70, 1032, 9, x.element_size(), device).row_tiles) for device in (few, H200)}
    assert len(tiles) == 2
    for device in (H200, A100):
        for begin, end in ((0, 1), (3, 21), (69, 70)):
            alone, _ = emulation.erase(x[begin:end], left, right, mean, device=device)
            assert torch.equal(alone, whole[begin:end])


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=nightly) for seed in range(3, 9))])
@pytest.mark.parametrize("norm", [None, "layer"])
def test_no_race(norm: str | None, seed: int) -> None:
    """Threads in another order, the same bits: no barrier is missing."""
    x, left, right, mean = operands(20, 1032, 9, torch.bfloat16, erasers=2)
    index = torch.arange(20) % 2
    options = {"norm": norm, "residual": x.flip(0) if norm else None}
    first = emulation.erase(x, left, right, mean, index, **options)
    other = emulation.erase(x, left, right, mean, index, seed=seed, **options)
    assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_row_touches_no_other(value: float) -> None:
    x, left, right, mean = operands(18, 64, 9, torch.bfloat16)
    clean, _ = emulation.erase(x, left, right, mean)
    x[4, 7] = value
    out, _ = emulation.erase(x, left, right, mean)
    others = [row for row in range(18) if row != 4]
    assert torch.equal(out[others], clean[others])
    assert not out[4].isfinite().any()


# --- an index ---


@pytest.mark.parametrize("dim", [72, 33, pytest.param(264, marks=nightly)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_row_meets_its_own_eraser(dtype: torch.dtype, dim: int) -> None:
    x, left, right, mean = operands(37, dim, 5, dtype, erasers=3)
    index = torch.randint(-1, 3, (37,), generator=torch.Generator().manual_seed(0))
    x[index == -1, 0] = float("nan")  # a bit pattern that arithmetic would not keep
    out, _ = emulation.erase(x, left, right, mean, index)
    assert torch.equal(out[index == -1].view(torch.uint8), x[index == -1].view(torch.uint8))
    for row in (index >= 0).nonzero()[:, 0].tolist():
        e = int(index[row])
        alone, _ = emulation.erase(x[row : row + 1], left[e], right[e], mean[e])
        assert torch.equal(out[row : row + 1], alone)
    assert emulation.take_unknown() == 0


def test_an_unknown_index_is_counted_and_never_passes_unerased() -> None:
    x, left, right, mean = operands(20, 1032, 2, torch.bfloat16, erasers=2)
    index = torch.zeros(20, dtype=torch.int64)
    index[3], index[17], index[18] = 2, -2, 2**40
    out, _ = emulation.erase(x, left, right, mean, index)
    assert out.isnan().all(dim=1).nonzero()[:, 0].tolist() == [3, 17, 18]
    assert emulation.take_unknown() == 3
    assert emulation.take_unknown() == 0


# --- memory ---


@pytest.mark.parametrize("dim", [40, 33, pytest.param(1032, marks=nightly)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_between_strided_rows(dtype: torch.dtype, dim: int) -> None:
    rows, left, right, mean = operands(19, dim + 24, 3, dtype)
    left, right, mean = left[8 : dim + 8].contiguous(), right[:, 8 : dim + 8].contiguous(), mean[8 : dim + 8].clone()
    before, x = rows.clone(), rows[:, 8 : dim + 8]
    alone, _ = emulation.erase(x.contiguous(), left, right, mean)
    index = torch.zeros(19, dtype=torch.int64)
    index[7] = -1
    emulation.erase(x, left[None], right[None], mean[None], index, out=x)
    alone[7] = before[7, 8 : dim + 8]
    assert torch.equal(x, alone)
    assert torch.equal(rows[:, :8], before[:, :8]) and torch.equal(rows[:, dim + 8 :], before[:, dim + 8 :])


def test_no_rows() -> None:
    x, left, right, mean = operands(0, 64, 3, torch.bfloat16)
    assert emulation.erase(x, left, right, mean)[0].shape == (0, 64)


# --- the norms ---


@pytest.mark.parametrize("device", [H200, pytest.param(A100, marks=nightly)], ids=["clusters", "one block"])
@pytest.mark.parametrize("with_residual", [True, pytest.param(False, marks=nightly)])
@pytest.mark.parametrize(("rows", "dim", "rank"), [(5, 64, 3), (18, 33, 2), pytest.param(3, 1032, 9, marks=nightly)])
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_agree_with_float64(
    dtype: torch.dtype, norm: str, rows: int, dim: int, rank: int, with_residual: bool, device: Device
) -> None:
    x, left, right, mean = operands(rows, dim, rank, dtype)
    residual = 3 * x.flip(0) + 1 if with_residual else None
    weight, bias = 1 + mean.flip(0).to(dtype) / 4, mean.to(dtype)
    own = weight if rows != 5 else weight.float()  # weights may be float32 beside narrower rows
    summed = x if residual is None else x + residual
    if norm == "rms":
        out = emulation.erase(
            x, left, right, mean, norm=norm, residual=residual, weight=own, weight_offset=1.0, device=device
        )
        normed = functional.rms_norm(summed.double(), (dim,), weight.double() + 1, 1e-5)
    else:
        own_bias = bias.to(own.dtype)
        out = emulation.erase(
            x, left, right, mean, norm=norm, residual=residual, weight=own, bias=own_bias, device=device
        )
        normed = functional.layer_norm(summed.double(), (dim,), weight.double(), bias.double(), 1e-5)
    assert torch.equal(out[1], summed)
    truth = exact(normed, left, right, mean)
    terms = 2**-13 if x.element_size() == 2 else 2**-19
    assert ((out[0].double() - truth).abs() <= torch.finfo(dtype).eps / 2 * truth.abs() * 1.01 + terms).all()


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_rows_of_a_norm_without_an_eraser(norm: str) -> None:
    x, left, right, mean = operands(6, 64, 3, torch.float32, erasers=1)
    index = torch.tensor([0, -1, 0, -1, -1, 5])
    out, _ = emulation.erase(x, left, right, mean, index, norm=norm)
    alone, _ = emulation.erase(x, 0 * left[0], right[0], mean[0], norm=norm)
    assert torch.equal(out[index == -1], alone[index == -1])
    assert out[5].isnan().all() and emulation.take_unknown() == 1


# --- the plan of a launch ---


@pytest.mark.parametrize("device", [A100, H200, B200], ids=["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("row_bytes", [2, 4])
def test_every_plan_fits(row_bytes: int, device: Device) -> None:
    for rows in (1, 16, 64, 500, 4096, 65536, 10**9):
        for dim in (1, 64, 100, 768, 2048, 4096, 5120, 16384, 65536):
            for rank in (1, 8, 16, 33, 64):
                plan = emulation.plan(rows, dim, rank, row_bytes, device, vector=dim % 8 == 0)
                layout = plan.layout
                assert plan.cluster == (plan.parts if device.capability >= 90 else 1) and plan.parts in (1, 2, 4, 8)
                assert layout.bytes <= device.per_block
                if plan.row_tiles > 1:  # two blocks on a multiprocessor, with the kilobyte of each that is not ours
                    assert 2 * (layout.bytes + 1024) <= device.per_multiprocessor
                assert plan.blocks * plan.row_tiles * 16 >= rows * plan.cluster
                assert (plan.blocks // plan.cluster - 1) * plan.row_tiles * 16 < rows
                # Sums are ordered by (dim, dtype) alone.
                assert plan.parts == emulation.plan(1, dim, 1, row_bytes, H200).parts
                starts = [layout.partial, layout.sums, layout.moments, layout.fragments, layout.scale, layout.erasers]
                starts += [layout.leaders, layout.tile, layout.bytes]
                assert starts == sorted(starts) and all(start % 16 == 0 for start in starts)


def test_prefill_reads_factors_seldom_and_decode_fills_a_cluster() -> None:
    prefill, decode = emulation.plan(65536, 4096, 16), emulation.plan(1, 4096, 16)
    assert (prefill.cluster, prefill.row_tiles, prefill.hold) == (8, 4, True)
    assert (decode.cluster, decode.row_tiles, decode.hold, decode.blocks) == (8, 1, True, 8)
    assert emulation.plan(65536, 16384, 64).hold
    assert not emulation.plan(65536, 4096, 64, device=A100).hold  # rows are read again, mostly from the L2 cache


# --- the operators of torch, on emulated tensors ---


@nightly
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_take_any_layout(dtype: torch.dtype) -> None:
    """Slices, broadcast rows, transposes, no rows; what apply_cuda.cpp makes of them."""
    emulated = emulation.operators()
    rows, left, right, mean = operands(24, 40, 5, dtype)
    layouts = [rows, rows.reshape(2, 3, 4, 40), rows.reshape(4, 6, 40).transpose(0, 1), rows.mT.contiguous().mT]
    layouts += [rows[::2], rows[:0], rows[3], rows[:1].expand(4, 40)]
    for x in layouts:
        flat = x.reshape(-1, 40).contiguous()
        expected = emulation.erase(flat, left, right, mean)[0].reshape(x.shape)
        for factor in (left, left.mT.contiguous().mT):
            out = emulated.project(x, factor, right, mean)
            assert torch.equal(out, expected) and out.is_contiguous() and out.dtype == dtype
        if 0 in x.stride():
            with pytest.raises(RuntimeError, match="share memory"):
                emulated.project_(x, left, right, mean)
            continue
        place = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
        emulated.project_(place, left, right, mean)
        assert torch.equal(place, expected)


@nightly
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_of_the_norms(dtype: torch.dtype) -> None:
    emulated = emulation.operators()
    x, left, right, mean = operands(6, 40, 5, dtype)
    residual = x.flip(0).reshape(2, 3, 40)
    for weight in (mean, mean.to(dtype), None):
        out = emulated.add_rms_norm_project(x.reshape(2, 3, 40), residual, weight, 1e-5, left, right, mean, None, 1.0)
        expected = emulation.erase(
            x, left, right, mean, norm="rms", residual=x.flip(0), weight=weight, weight_offset=1.0
        )
        assert torch.equal(out[0].reshape(6, 40), expected[0]) and torch.equal(out[1].reshape(6, 40), expected[1])
        y, summed = emulated.add_layer_norm_project(x, None, weight, weight, 1e-5, left, right, mean)
        assert torch.equal(y, emulation.erase(x, left, right, mean, norm="layer", weight=weight, bias=weight)[0])
        assert summed.numel() == 0


@nightly
def test_operators_refuse_what_does_not_fit() -> None:
    emulated = emulation.operators()
    x, left, right, mean = operands(6, 40, 5, torch.bfloat16)
    for bad in (
        (x.double(), left.double(), right.double(), mean.double()),
        (x, left[:, :0], right[:0], mean),
        (x, left.repeat(1, 13), right.repeat(13, 1), mean),
        (x, left.bfloat16(), right.bfloat16(), None),
        (x[:, :8], left, right, mean),
        (x, left, right, mean[:8]),
    ):
        with pytest.raises(RuntimeError):
            emulated.project(*bad)
    with pytest.raises(RuntimeError):
        emulated.add_rms_norm_project(x, x[:1], None, 1e-5, left, right)
    index = torch.tensor([0, -1, 5, 0, -1, 0])
    out = emulated.project(x, left[None], right[None], mean[None], index)
    assert out[2].isnan().all() and torch.equal(out[1], x[1])
    assert emulated.take_unknown(x) == 1 and emulated.take_unknown(x) == 0


# --- what the compiler makes of them ---

ARCHITECTURES = ("80", "90a", "100")  # those of setup.py
KERNELS = sorted(path.name for path in emulation.CUDA.glob("*.cu"))
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH to compile the CUDA kernels with")


def compile_kernel(source: str, *options: str) -> str:
    """Return what nvcc prints."""
    command = [str(NVCC), "-std=c++20", "-O3", *options, str(emulation.CUDA / source)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@needs_nvcc
def test_the_operators_compile_against_cuda() -> None:
    """Against the headers of torch and CUDA themselves, which the emulator stands in for elsewhere."""
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    include = next(home / "include" for home in [*homes, Path(str(NVCC)).resolve().parents[1]] if home.exists())
    source, torch_include = emulation.ROOT / "csrc/torch/apply_cuda.cpp", Path(torch.__file__).parent / "include"
    options = ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Werror", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    options += [f"-I{folder}" for folder in (emulation.ROOT / "csrc/include", torch_include, include)]
    subprocess.run([str(emulation.COMPILER), "-fsyntax-only", *options, str(source)], check=True)


@nightly
@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", KERNELS)
def test_registers_suffice(source: str, architecture: str, tmp_path: Path) -> None:
    """No stack frame, no spill; two blocks fit a multiprocessor wherever rows are held in clusters."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    said = compile_kernel(source, target, "-Xptxas=-v", "-cubin", f"-o={tmp_path}/kernel.cubin")
    assert "warning" not in said, said
    kernels = re.findall(r"Compiling entry function '(\S+)'(.*?)Used (\d+) registers", said, flags=re.S)
    assert len(kernels) == 9  # three types of rows, held, read again or number by number
    for name, report, registers in kernels:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, (name, report)
        held = "AccessE0" in name
        assert int(registers) <= (128 if held and architecture != "80" else 255)


@nightly
@needs_nvcc
def test_the_instructions_that_were_meant(tmp_path: Path) -> None:
    """Tensor cores, memory in vectors of 16 bytes, clusters: in each kernel that is to have them, and only there."""
    compile_kernel("project.cu", "-arch=compute_90a", "-ptx", f"-o={tmp_path}/kernel.ptx")
    entries = (tmp_path / "kernel.ptx").read_text().split(".entry ")[1:]
    assert len(entries) == 9
    for entry in entries:
        name = entry.split("(")[0]
        single = "AccessE2" in name
        assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in entry
        assert "barrier.cluster.arrive.release" in entry and "mapa.u64" in entry
        assert bool(re.search(r"ld\.global(\.nc)?\.v4", entry)) != single, name
        assert bool(re.search(r"st\.global\.v4", entry)) != single, name
        assert "fma.rn.f64" not in entry
    compile_kernel("project.cu", "-arch=compute_80", "-ptx", f"-o={tmp_path}/kernel.ptx")
    assert "barrier.cluster" not in (tmp_path / "kernel.ptx").read_text()


# --- on a GPU ---

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or "cuda" not in ops.EXTENSION.devices, reason="no GPU, or no kernels built for it"
)


def on_gpu(*tensors: Tensor) -> list[Tensor]:
    return [tensor.cuda() for tensor in tensors]


def test_ranks_and_dtypes_that_go_to_plain_torch() -> None:
    x, left = torch.empty(1, 128), torch.empty(128, 64)
    assert (emulation.CUDA / "apply.h").read_text().count(f"MAX_RANK = {ops.MOST_GPU_RANKS};") == 1
    assert ops._fits_gpu(x, left) and ops._fits_gpu(x.half(), left[None])
    assert not ops._fits_gpu(x.double(), left) and not ops._fits_gpu(x, torch.empty(128, 65))
    assert not ops._fits_gpu(x, left[:, :0])


@needs_gpu
@pytest.mark.parametrize(
    ("rows", "dim", "rank"), [*SHAPES, (4096, 4096, 64), (777, 8192, 16), (9, 256, 65), (5, 64, 0)]
)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_gpu_agrees_with_float64(dtype: torch.dtype, rows: int, dim: int, rank: int) -> None:
    factors = reference.compute_dtype(dtype)
    x, left, right, mean = on_gpu(*operands(rows, dim, max(rank, 1), dtype))
    left, right, mean = left[:, :rank].to(factors), right[:rank].to(factors), mean.to(factors)
    truth = exact(x, left, right, mean)
    out = ops.project(x, left, right, mean)
    assert rms(out - truth) <= 1.5 * max(rms(reference.project(x, left, right, mean) - truth), 2**-26)
    assert torch.equal(ops.project_(x.clone(), left, right, mean), out)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_rows_have_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    x, left, right, mean = on_gpu(*operands(512, 4096, 16, dtype))
    whole = ops.project(x, left, right, mean)
    for rows in (1, 2, 16, 17, 64, 65, 511):
        assert torch.equal(ops.project(x[-rows:], left, right, mean), whole[-rows:])
    for _ in range(1000):
        assert torch.equal(ops.project(x, left, right, mean), whole)


@needs_gpu
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_norms_agree_with_plain_torch(dtype: torch.dtype, norm: str) -> None:
    x, left, right, mean = on_gpu(*operands(130, 2048, 9, dtype))
    residual, weight = x.flip(0), mean.to(dtype)
    if norm == "rms":
        out = ops.add_rms_norm_project(x, residual, weight, 1e-6, left, right, mean, weight_offset=1.0)
        expected = reference.add_rms_norm_project(x, residual, weight, 1e-6, left, right, mean, weight_offset=1.0)
    else:
        out = ops.add_layer_norm_project(x, residual, weight, weight, 1e-6, left, right, mean)
        expected = reference.add_layer_norm_project(x, residual, weight, weight, 1e-6, left, right, mean)
    assert torch.equal(out[1], expected[1])
    torch.testing.assert_close(out[0], expected[0], rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@needs_gpu
def test_gpu_graphs_see_new_rows_and_swapped_erasers() -> None:
    x, left, right, mean = on_gpu(*operands(64, 1024, 8, torch.bfloat16, erasers=2))
    erasers = [Eraser(left[e], right[e], mean[e]) for e in range(2)]
    table, index = EraserTable(erasers), torch.randint(-1, 2, (64,), device="cuda")
    table(x, index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = table(x, index)
    x.copy_(x.flip(0))
    graph.replay()
    assert torch.equal(out, table(x, index))
    table.swap(0, erasers[1])
    graph.replay()
    assert torch.equal(out[index >= 0], table(x, torch.ones_like(index))[index >= 0])
    assert torch.equal(out[index < 0], x[index < 0])


@needs_gpu
def test_gpu_counts_an_unknown_index() -> None:
    x, left, right, mean = on_gpu(*operands(20, 256, 3, torch.float32, erasers=2))
    index = torch.zeros(20, dtype=torch.int64, device="cuda")
    index[5] = 2
    assert ops.project(x, left, right, mean, index)[5].isnan().all()
    with pytest.raises(IndexError, match="1 rows"):
        ops.check_index(x)
    ops.check_index(x)
