"""Compile the kernels as they are launched, for devices that are not there, and read what the compiler made of them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from leace_fast.statistics import IGNORE
from leace_fast.statistics._state import State
from leace_fast.triton_kernels import configs
from leace_fast.triton_kernels import launches as launching
from leace_fast.triton_kernels.block import BlockKernels
from leace_fast.triton_kernels.rows import Batch, Strided, Waiting

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
}
# Bytes of shared memory that a program may use.
SHARED = {(8, 0): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10}
PROCESSORS = {(8, 0): 108, (9, 0): 132, (10, 0): 148}


@dataclass(frozen=True)
class Launch:
    """One kernel with the arguments that it was launched with, by name."""

    kernel: Any
    arguments: dict[str, Any]
    warps: int

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments that are compiled in."""
        return {part.name: self.arguments[part.name] for part in self.kernel.params if part.is_constexpr}


@dataclass(frozen=True)
class Built:
    """What the compiler made of a kernel."""

    ptx: str
    registers: int
    stack: int
    spilled: int
    shared: int
    descriptors: list[Any]  # how the tensor memory accelerator reads each operand

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.ptx))


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect launches instead of doing them."""
    launches: list[Launch] = []

    def note(kernel: Any, grid: Any, arguments: Any, warps: int) -> None:
        assert all(0 < size < 2**31 for size in grid) and max((*grid, 1, 1)[1:3]) < 2**16
        launches.append(Launch(kernel, dict(zip(kernel.arg_names, arguments, strict=True)), warps))

    with patch.object(launching, "launch", note):
        yield launches


def launches(
    capability: tuple[int, int],
    dtype: torch.dtype,
    precision: str = "high",
    dim: int = 4096,
    classes: int = 2,
    targets: int = 0,
    per_class: bool = False,
    weighted: bool = False,
) -> list[Launch]:
    """Return all launches for a batch of labels, rows and one block, with tensors that hold nothing."""
    device = torch.device("meta")
    config = configs.update_config(dtype, precision, capability)
    kernels = BlockKernels(dim, classes, targets, per_class, config, device, PROCESSORS[capability])
    state = State.empty(dim, classes, targets, per_class, device)
    rows = kernels.sizes.rows

    def strided(tensor: Tensor) -> Strided:
        return Strided(tensor, 0, tensor.stride(0), tensor.stride(-1))

    x, y = torch.empty(rows, dim, dtype=dtype, device=device), torch.empty(rows, dtype=torch.int64, device=device)
    z = torch.empty(rows, max(targets, 1), dtype=torch.float32, device=device)
    one = strided(torch.empty(rows, dtype=torch.float32, device=device))
    mask = strided(torch.empty(rows, dtype=torch.uint8, device=device))
    batch = Batch(rows, strided(x), strided(z) if targets else strided(y), mask, one if weighted else None, IGNORE)
    waiting = Waiting(y.int(), torch.empty(rows, dtype=torch.float64, device=device), z.double())
    with recorded() as found:
        kernels.staging.stage(batch, 0, rows, 0, waiting)
        kernels.staging.copy(batch, 0, rows, 0, x)
        kernels.add(state, batch.part(0, rows), waiting, weighted, y)
    return [launch for index, launch in enumerate(found) if launch.name not in [one.name for one in found[:index]]]


def build(launch: Launch, capability: tuple[int, int]) -> Built:
    """Compile a launch as Triton would at run time."""
    sizes = launch.sizes
    fixed = set(launch.kernel.do_not_specialize)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(sizes)
    attributes: dict[tuple[int, ...], Any] = {}
    for index, (name, value) in enumerate(launch.arguments.items()):
        if name in sizes:
            signature[name] = "constexpr"
        elif isinstance(value, Tensor):
            signature[name] = f"*{NAMES[value.dtype]}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            signature[name] = f"tensordesc<{NAMES[value.base.dtype]}{list(value.block_shape)}>"
        elif value == 1 and name not in fixed and index not in fixed:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and name not in fixed and index not in fixed:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    compiled = triton.compile(source, target=target, options={"num_warps": launch.warps, "enable_fp_fusion": True})
    usage = _resources(compiled.asm["cubin"])
    sizes = (usage["REG"], usage["STACK"], usage["LOCAL"], compiled.metadata.shared)
    return Built(compiled.asm["ptx"], *sizes, list(getattr(compiled.metadata, "tensordesc_meta", None) or []))


def _resources(cubin: bytes) -> dict[str, int]:
    """Return registers, stack and local memory of the one kernel in a cubin."""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"leace-fast-{os.getpid()}.cubin"
    path.write_bytes(cubin)
    try:
        command = [str(CUOBJDUMP), "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        path.unlink()
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
