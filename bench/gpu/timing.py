"""The one way to time on a GPU, and what no implementation can beat there."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# Of one NVIDIA H200, measured elsewhere with copies and products of random data; `ceilings` measures them again.
KNOWN = {"copy": 4.3e12, "bfloat16": 790e12, "float32": 67e12}
ROTATED = 400 << 20  # bytes of inputs before one comes again: several times the L2 cache
BUDGET = 0.3  # seconds for one measurement
OURS = "leace-fast"


@dataclass(frozen=True)
class Work:
    """What an operation cannot do without, whoever implements it.

    Attributes:
        name: the operation and its sizes; peers share it.
        bytes: read and written at least.
        operations: additions and multiplications at least.
        tensor_cores: whether these may run in bfloat16.
    """

    name: str
    bytes: float
    operations: float
    tensor_cores: bool = True

    def floor(self, rates: dict[str, float]) -> float:
        rate = rates["bfloat16"] if self.tensor_cores else rates["float32"]
        return max(self.bytes / rates["copy"], self.operations / rate)


def median_seconds(call: Callable[[], object], budget: float = BUDGET) -> tuple[float, float]:
    """Return median and interquartile range of the time on the device, by events."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()

    def once() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    rounds = max(5, min(200, int(budget / max(once(), 1e-6))))
    times = sorted(once() for _ in range(rounds))
    quarters = statistics.quantiles(times, n=4)
    return statistics.median(times), quarters[2] - quarters[0]


def rotation(make: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function that hands out one of several inputs, in turn, so that none is in the cache."""
    first = make()
    copies = max(2, -(-ROTATED // (first.numel() * first.element_size())))
    return itertools.cycle([first, *(make() for _ in range(copies - 1))]).__next__


def in_graph(call: Callable[[], object]) -> Callable[[], object]:
    """Return a function that replays a call from a CUDA graph: its time without that of the host.

    It has run before on the very stream that captures it, so that all is compiled and none waits for another one.
    """
    if not torch.cuda.is_available():
        return call
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        kept = call()

    def run() -> object:
        graph.replay()
        return kept

    return run


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for the very shapes that come; without what was compiled before, whose number is limited."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def row(
    work: Work,
    peer: str,
    call: Callable[[], object],
    rates: dict[str, float],
    times: int = 1,
    graph: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Time one peer on one piece of work, some calls at a time, from a graph or not; who cannot do it says why."""
    floor = work.floor(rates)
    found = asdict(work) | {"peer": peer, "floor": floor} | more

    def calls() -> list[object]:
        return [call() for _ in range(times)]

    try:
        seconds, spread = median_seconds(in_graph(calls) if graph else calls)
    except Exception as error:
        if peer.startswith(OURS):
            raise
        return found | {"seconds": None, "failed": f"{type(error).__name__}: {error}"[:300]}
    return found | {"seconds": seconds / times, "iqr": spread / times}


def ceilings(device: torch.device) -> dict[str, float]:
    """Return the rates of a large copy, in bytes read and written, and of large products of random matrices."""
    source = torch.randn(1 << 28, device=device)
    target = torch.empty_like(source)
    found = {"copy": 2 * source.nbytes / median_seconds(lambda: target.copy_(source))[0]}
    for name, dtype, side in (("bfloat16", torch.bfloat16, 8192), ("float32", torch.float32, 4096)):
        one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * side**3 / median_seconds(lambda one=one, two=two: one @ two)[0]
    return found
