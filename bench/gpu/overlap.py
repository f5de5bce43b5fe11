"""Statistics on a side stream, beside the next forward pass: a trace shows whether they overlap."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leace_fast import Moments, record

LAYERS, DIM, ROWS = 16, 4096, 16384


class Layer(nn.Module):
    """A residual block of about the cost of a transformer's MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def measure(device: torch.device, trace: Path) -> list[dict[str, Any]]:
    """Time forward passes alone, with statistics on their own stream, and recorded, aside; trace the last."""
    model = nn.Sequential(*(Layer(DIM) for _ in range(LAYERS))).to(device, torch.bfloat16).requires_grad_(False)
    x, y = torch.randn(1, ROWS, DIM, device=device).bfloat16(), torch.randint(2, (1, ROWS), device=device)
    names = [f"{index}.norm" for index in range(LAYERS)]
    found = [{"pass": "forward alone", "seconds": seconds(lambda: model(x))}]

    moments = {name: Moments(DIM, 2, device=device) for name in names}
    handles = []
    for name in names:

        def hook(_module: nn.Module, _inputs: Any, rows: Tensor, name: str = name) -> None:
            moments[name].update(rows, y)

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    found.append({"pass": "statistics on the same stream", "seconds": seconds(lambda: model(x))})
    for handle in handles:
        handle.remove()
    moments.clear()

    with record(model, names, num_classes=2):
        found.append({"pass": "recorded", "seconds": seconds(lambda: model(x, concept_labels=y))})
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(2):
                model(x, concept_labels=y)
            torch.cuda.synchronize()
        profile.export_chrome_trace(str(trace))
    return found


def seconds(forward: Callable[[], object], passes: int = 8) -> float:
    """Return the time of one of several passes, until all streams are done."""
    for _ in range(3):
        forward()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(passes):
        forward()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / passes
