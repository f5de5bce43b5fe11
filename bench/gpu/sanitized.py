"""A small run of every kernel, for compute-sanitizer: narrow and wide rows, classes, targets, bad rows."""

from __future__ import annotations

import sys

import torch

from leace_fast import Moments
from leace_fast._ops import operators as ops


def main(device: torch.device, rows: int = 300) -> None:
    """Add some rows of every kind, and read the result."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = torch.randn(rows, 70, device=device).to(dtype)
        x[5, 3] = torch.nan
        y = torch.arange(rows, device=device) % 3
        weight = torch.rand(rows, device=device)
        for options in ({"num_classes": 3}, {"num_classes": 3, "per_class": True}, {"target_dim": 2}):
            goal = torch.randn(rows, 2, device=device) if "target_dim" in options else y
            moments = Moments(70, device=device, nonfinite="skip", **options)  # type: ignore[arg-type]
            moments.update(x, goal).update(x, goal, weight=weight, mask=weight > 0.2)
            assert moments.skipped in (1, 2) and moments.covariance.isfinite().all()
    if device.type in ops.EXTENSION.devices:
        x, factor = torch.randn(37, 70, device=device), torch.randn(70, 3, device=device)
        index = torch.arange(37, device=device) % 3 - 1
        ops.project(x, factor, factor.mT.contiguous(), x[0])
        ops.project(x, torch.stack([factor] * 2), torch.stack([factor.mT] * 2).contiguous(), x[:2], index)
        ops.add_rms_norm_project(x, x, x[0], 1e-6, factor, factor.mT.contiguous(), x[0])
        ops.check_index(x)
    print("every kernel ran")


if __name__ == "__main__":
    main(torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda"))
