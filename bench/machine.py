"""What the benchmarks ran on: the machine, the versions, and the rates that no implementation can pass here."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch

import leace_fast
from leace_fast._ops.operators import EXTENSION
from leace_fast.models import multiplies

COPY_BYTES = 256 << 20  # of one buffer: far past every private cache
PRODUCT = 2048  # side of the matrices whose product gives the arithmetic rates
ROUNDS = 7


def describe() -> dict[str, object]:
    """Return the machine and the versions; nothing that names a host or a person."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {
            "leace-fast": leace_fast.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "concept-erasure": importlib.metadata.version("concept-erasure"),
        },
        "extension": EXTENSION.build or EXTENSION.reason,
    }


@functools.cache
def rates() -> dict[str, float]:
    """Return what this machine reaches at best: bytes copied (read and written) and operations a second, by dtype.

    Dtypes of which torch has no products here are left out: it takes minutes for one.
    """
    source, target = torch.randn(2, COPY_BYTES // 4)
    found = {"copy": 2 * COPY_BYTES / _best(lambda: target.copy_(source))}
    for dtype in filter(multiplies, (torch.float32, torch.float64, torch.bfloat16, torch.float16)):
        left, right, product = torch.randn(3, PRODUCT, PRODUCT).to(dtype)
        seconds = _best(lambda a=left, b=right, out=product: torch.mm(a, b, out=out))
        found[str(dtype).removeprefix("torch.")] = 2 * PRODUCT**3 / seconds
    return found


def _best(work: Callable[[], object]) -> float:
    """Return the shortest of some runs, in seconds: a floor is what the machine can do, not what it usually does."""
    work()
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
