"""How far a tensor core's float32 accumulator falls behind, by the rows that it sums before they are moved out."""

from __future__ import annotations

from dataclasses import replace

import torch

from leace_fast.statistics._state import State
from leace_fast.triton_kernels.block import BlockKernels
from leace_fast.triton_kernels.configs import update_config

PROMOTED = (256, 512, 1024, 4096, 16384, 32768)


def measure(
    device: torch.device, capability: tuple[int, int], dim: int = 256, promoted: tuple[int, ...] = PROMOTED
) -> list[dict[str, float]]:
    """Return mean and largest relative error of the diagonal of T'T, of standard normal bfloat16 rows."""
    config = update_config(torch.bfloat16, "high", capability)
    found = []
    for promote in promoted:
        kernels = BlockKernels(dim, 2, 0, False, replace(config, promote=promote), device, 1)
        tile = kernels.scratch.tile[: kernels.sizes.rows]
        generator = torch.Generator(device).manual_seed(promote)
        tile.copy_(torch.randn(tile.shape, generator=generator, device=device))
        kernels.scratch.tile_starts[-1] = kernels.sizes.rows
        kernels.product.add(State.empty(dim, 2, 0, False, device), 0, 1)
        # Of tiles (0, 0), (1, 0), (1, 1), ...: those on the diagonal.
        side = kernels.sizes.width // config.tile
        own = torch.tensor([i * (i + 3) // 2 for i in range(side)], device=device)
        summed = kernels.scratch.partial[0].double().sum(0)[own].diagonal(dim1=1, dim2=2).flatten()[:dim]
        exact = tile[:, :dim].double().square().sum(0)
        error = summed / exact - 1
        found.append({"rows": promote, "mean": float(error.mean()), "worst": float(error.abs().max())})
    return found
