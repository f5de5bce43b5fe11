"""The CUDA kernels on the CPU: their own sources, compiled with the emulator in tests/cuda_emulator."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from ctypes import POINTER, byref, c_bool, c_float, c_int, c_int64, c_uint32, c_ulonglong, c_void_p
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
CUDA, EMULATOR = ROOT / "csrc/cuda", ROOT / "tests/csrc/cuda_emulator"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
# Without contraction a x + b rounds twice with every compiler, as the comparisons of bits between builds expect.
FLAGS = ["-std=c++20", "-O0", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NORMS = {None: 0, "rms": 1, "layer": 2}


class Device(ctypes.Structure):
    _fields_ = [(name, c_int) for name in ("capability", "multiprocessors", "per_block", "per_multiprocessor")]


class Shape(ctypes.Structure):
    _fields_ = [("rows", c_int64), ("dim", c_int64), ("rank", c_int64), ("row_bytes", c_int), ("vector", c_bool)]


class Layout(ctypes.Structure):
    _fields_ = [
        *[(name, c_int) for name in ("partial", "sums", "moments", "fragments", "scale", "erasers", "leaders", "tile")],
        ("bytes", c_int64),
        *[(name, c_int) for name in ("partial_stride", "rank_stride", "steps")],
    ]


class Plan(ctypes.Structure):
    _fields_ = [("parts", c_int), ("cluster", c_int), ("row_tiles", c_int), ("hold", c_bool)]
    _fields_ += [("layout", Layout), ("blocks", c_int64)]


class Rows(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("stride", c_int64)]


class NormWeights(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("float32", c_bool), ("offset", c_float), ("eps", c_float)]


class Factors(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("left_t", "right", "mean", "index")]
    _fields_ += [(name, c_int64) for name in ("dim", "rank", "erasers")]


A100 = Device(80, 108, 163 << 10, 164 << 10)
H200 = Device(90, 132, 227 << 10, 228 << 10)
B200 = Device(100, 148, 227 << 10, 228 << 10)


def build(name: str, sources: list[str], *options: str) -> Path:
    """Return a library compiled for the emulator; it is kept in the temporary folder while no source changes."""
    folders = [EMULATOR, CUDA, ROOT / "csrc/torch", ROOT / "csrc/include"]
    contents = [path.read_bytes() for folder in folders for path in sorted(folder.iterdir())]
    digest = hashlib.sha256(b"".join(contents) + repr((FLAGS, options)).encode()).hexdigest()[:16]
    target = Path(tempfile.gettempdir(), f"leace_fast_{name}_{os.getuid()}_{digest}.so")
    if not target.exists():
        assert COMPILER is not None
        fresh = target.with_suffix(f".{os.getpid()}")
        includes = [f"-I{folder}" for folder in folders]
        files = [str(EMULATOR / source) for source in sources]
        command = [COMPILER, *FLAGS, "-DLEACE_FAST_EMULATOR", *includes, "-shared", "-fPIC", *files, "-o", str(fresh)]
        subprocess.run([*command, *options], check=True)
        fresh.replace(target)
    return target


@functools.cache
def operators():
    """Return the operators of torch for CUDA, on tensors of the CPU."""
    home = Path(torch.__file__).parent
    target = build(
        "cuda_operators",
        ["emulated.cpp", "emulated_ops.cpp"],
        "-Dleace_fast=leace_fast_emulated",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-Wno-attributes",
        f"-I{home}/include",
        f"-L{home}/lib",
        "-ltorch_cpu",
        "-lc10",
    )
    torch.ops.load_library(target)
    loaded = ctypes.CDLL(str(target))
    loaded.emulate.argtypes = [Device, c_uint32]
    loaded.emulate(H200, 0)
    return torch.ops.leace_fast_emulated


@functools.cache
def library() -> ctypes.CDLL:
    """Return the kernels behind plain pointers."""
    target = build("cuda_kernels", ["emulated.cpp"])
    loaded = ctypes.CDLL(str(target))
    loaded.emulate.argtypes = [Device, c_uint32]
    loaded.run.argtypes = [c_int, c_int, Rows, Rows, Rows, Rows, c_int64, POINTER(NormWeights), POINTER(Factors)]
    loaded.unknown.restype = c_ulonglong
    loaded.plan.argtypes = [POINTER(Shape), POINTER(Device), POINTER(Plan)]
    loaded.plan.restype = None
    return loaded


def plan(rows: int, dim: int, rank: int, row_bytes: int = 2, device: Device = H200, vector: bool = True) -> Plan:
    """Return how a launch is laid out."""
    out = Plan()
    library().plan(byref(Shape(rows, dim, rank, row_bytes, vector)), byref(device), byref(out))
    return out


def take_unknown() -> int:
    """Return how many rows named an eraser that is not there, since the last call."""
    return library().unknown()


def erase(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    mean: Tensor | None = None,
    index: Tensor | None = None,
    *,
    out: Tensor | None = None,
    norm: str | None = None,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    weight_offset: float = 0.0,
    device: Device = H200,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Run a kernel on rows x (n, d) and return (y, summed); with `out`, y is written there."""
    left_t, right = left.mT.contiguous(), right.contiguous()
    mean = None if mean is None else mean.contiguous()
    summed = torch.full_like(x, float("nan"), memory_format=torch.contiguous_format)
    y = summed.clone() if out is None else out
    factors = Factors(
        left_t.data_ptr(),
        right.data_ptr(),
        None if mean is None else mean.data_ptr(),
        None if index is None else index.data_ptr(),
        x.shape[1],
        right.shape[-2],
        1 if index is None else len(right),
    )
    weights = NormWeights(
        None if weight is None else weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight is not None and weight.dtype == torch.float32,
        weight_offset,
        eps,
    )
    library().emulate(device, seed)
    error = library().run(
        NORMS[norm],
        TYPES[x.dtype],
        rows_of(x),
        rows_of(residual),
        rows_of(y),
        rows_of(summed if residual is not None else None),
        len(x),
        byref(weights),
        byref(factors),
    )
    assert error == 0, f"cudaError {error}"
    return y, x if residual is None else summed


def rows_of(x: Tensor | None) -> Rows:
    """Return a matrix as the kernels take it."""
    return Rows(None, 0) if x is None else Rows(x.data_ptr(), x.stride(0))
