"""Statistics on a side stream, beside the forward pass that makes the rows: a trace shows whether they overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timing import median_seconds
from torch import Tensor, nn

from leace_fast import Moments

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
    """Time a forward pass alone, with statistics on its own stream, and on a side stream; trace the last."""
    model = nn.Sequential(*(Layer(DIM) for _ in range(LAYERS))).to(device, torch.bfloat16).requires_grad_(False)
    x, y = torch.randn(ROWS, DIM, device=device).bfloat16(), torch.randint(2, (ROWS,), device=device)
    moments = [Moments(DIM, 2, device=device) for _ in range(LAYERS)]
    side = torch.cuda.Stream(device)

    def here(index: int, rows: Tensor) -> None:
        moments[index].update(rows, y)

    def aside(index: int, rows: Tensor) -> None:
        side.wait_stream(torch.cuda.current_stream(device))
        rows.record_stream(side)
        with torch.cuda.stream(side):
            moments[index].update(rows, y)

    def forward() -> None:
        model(x)
        torch.cuda.current_stream(device).wait_stream(side)

    found = [{"pass": "forward alone", "seconds": median_seconds(forward)[0]}]
    for name, take in (("statistics on the same stream", here), ("statistics on a side stream", aside)):
        hooks = []
        for index, layer in enumerate(model):

            def hook(_module: nn.Module, _inputs: Any, rows: Tensor, index: int = index, take: Any = take) -> None:
                take(index, rows)

            hooks.append(layer.get_submodule("norm").register_forward_hook(hook))
        found.append({"pass": name, "seconds": median_seconds(forward)[0]})
        if take is aside:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                forward()
                torch.cuda.synchronize()
            profile.export_chrome_trace(str(trace))
        for handle in hooks:
            handle.remove()
    return found
