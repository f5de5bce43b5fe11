"""The fit, timed: our kernels, the published package, cuBLAS and torch.compile on the same rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from timing import Work, compiled, median_seconds, rotation, row
from torch import Tensor

from leace_fast import Moments
from leace_fast.statistics import Kind
from leace_fast.statistics._device import DeviceRows
from leace_fast.statistics._state import State
from leace_fast.triton_kernels.block import BlockKernels

CLASSES = 8
DIMS = (768, 1024, 2048, 4096, 8192)
COMPILED = (768, 4096)  # widths at which torch.compile is timed too: it takes long to compile
CALLS = 8  # in one graph
UPDATES = (  # width, rows, dtype: those of a batch that is no whole block, and float32
    (768, 8192, torch.bfloat16),
    (4096, 8192, torch.bfloat16),
    (2048, 16384, torch.float32),
    (4096, 16384, torch.float32),
)
INGEST = 4096, (2, 64, 1024)  # width, numbers of classes
BY_CLASS, SITES = (1024, 32768), (64, 4096, 16384)  # width, rows; sites, width, rows


def work(name: str, rows: int, dim: int, element: int, tensor_cores: bool = True) -> Work:
    """Return what a symmetric update needs: each row read once, one triangle of products."""
    return Work(f"{name} d={dim} N={rows}", rows * dim * element, rows * dim * (dim + 1), tensor_cores)


def stream(rows: int, dim: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    return rotation(lambda: torch.randn(rows, dim, device=device).to(dtype))


def labels(rows: int, classes: int, device: torch.device) -> Tensor:
    return torch.randint(classes, (rows,), device=device)


def rows(device: torch.device, rates: dict[str, float], dims: tuple[int, ...] = DIMS) -> Iterator[dict[str, Any]]:
    """Yield one measurement after the other."""
    for dim in dims:
        yield from product_alone(device, rates, dim)
    for dim in dims:
        count = DeviceRows(Kind(dim, CLASSES), device).rows
        yield from whole_update(device, rates, count, dim, torch.bfloat16)
    for dim, count, dtype in UPDATES:
        yield from whole_update(device, rates, count, dim, dtype)
    for classes in INGEST[1]:
        yield from ingest_alone(device, rates, classes)
    yield from by_class(device, rates)
    yield from many_sites(device, rates)


def product_alone(device: torch.device, rates: dict[str, float], dim: int) -> Iterator[dict[str, Any]]:
    """Compare the symmetric kernel with the full product of cuBLAS and of torch.compile."""
    kernels = kernels_for(dim, 2, device)
    rows, scratch = kernels.sizes.rows, kernels.scratch
    need = work("product", rows, dim, 2)
    scratch.tile.normal_()
    scratch.scale.fill_(1)
    scratch.as_is.fill_(1)
    scratch.bad.zero_()
    scratch.tile_starts[-1] = rows
    scratch.group_weights[0] = rows
    state = State.empty(dim, 2, 0, False, device)
    turn = stream(rows, dim, torch.bfloat16, device)

    def full() -> Tensor:
        x = turn()
        return torch.mm(x.T, x, out_dtype=torch.float32)

    yield row(need, "leace-fast, of a tile", lambda: kernels.product.add(state, 0, 1), rates, CALLS, True)
    yield row(need, "leace-fast", lambda: kernels.product.add(state, 0, 1, turn()), rates, CALLS, True)
    yield row(need, "torch.mm", full, rates, CALLS, True)
    if dim in COMPILED:
        product = compiled(lambda x: torch.mm(x.T, x, out_dtype=torch.float32))
        yield row(need, "torch.compile", lambda: product(turn()), rates)


def kernels_for(dim: int, classes: int, device: torch.device) -> BlockKernels:
    """Return the kernels that `Moments` uses for bfloat16 rows."""
    state = State.empty(dim, classes, 0, False, device)
    with DeviceRows(Kind(dim, classes), device)._on_device(state) as kernels:
        return kernels


def whole_update(
    device: torch.device, rates: dict[str, float], rows: int, dim: int, dtype: torch.dtype
) -> Iterator[dict[str, Any]]:
    """Compare everything: shift, class sums and float64 sums, against the published fitter and plain torch."""
    narrow = dtype != torch.float32
    name = "update" if narrow else "update float32"
    need = work(name, rows, dim, 2 if narrow else 4)
    turn, y = stream(rows, dim, dtype, device), labels(rows, CLASSES, device)
    moments = Moments(dim, CLASSES, device=device)
    yield row(need, "leace-fast", lambda: moments.update(turn(), y), rates)
    if rows % moments._sums.rows_on_device().rows == 0:  # nothing is left to wait
        yield row(need, "leace-fast, in a graph", lambda: moments.update(turn(), y), rates, CALLS, True)

    def torch_mm() -> Tensor:
        x = turn()
        return torch.mm(x.T, x, out_dtype=torch.float32) if narrow else x.T @ x

    yield row(need, "torch.mm, the product alone", torch_mm, rates)
    second = torch.zeros(dim, dim, device=device)
    sums = torch.zeros(CLASSES, dim, device=device)
    shift = torch.zeros(dim, device=device)
    members = torch.nn.functional.one_hot(y, CLASSES).float()

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        centred = x.float() - shift
        low = centred.bfloat16() if narrow else centred
        product = torch.mm(low.T, low, out_dtype=torch.float32) if narrow else low.T @ low
        return second + product, sums + members.T @ centred

    if dim in COMPILED:
        update = compiled(plain)
        yield row(need, "torch.compile", lambda: update(turn()), rates)
    if importlib.util.find_spec("concept_erasure") is None:
        return
    from concept_erasure import LeaceFitter

    for peer_dtype in (torch.float32, torch.float64) if narrow else (torch.float32,):
        fitter = LeaceFitter(dim, CLASSES, dtype=peer_dtype, device=str(device))
        z = members.to(peer_dtype)
        name = f"concept-erasure {str(peer_dtype).removeprefix('torch.')}"
        yield row(need, name, lambda fitter=fitter, z=z: fitter.update(turn(), z), rates)


def ingest_alone(device: torch.device, rates: dict[str, float], classes: int) -> Iterator[dict[str, Any]]:
    """Compare everything but the product with a copy of the rows."""
    dim = INGEST[0]
    kernels = kernels_for(dim, classes, device)
    rows = kernels.sizes.rows
    need = Work(f"ingest d={dim} N={rows} k={classes}", 2 * rows * dim * 2, 0)
    turn, y = stream(rows, dim, torch.bfloat16, device), labels(rows, classes, device)
    held = DeviceRows(Kind(dim, classes), device)
    state = State.empty(dim, classes, 0, False, device)

    def ingest() -> None:
        held.add(state, turn(), y, None, None)

    with patch.object(kernels.product, "add_all", lambda *_: None):
        yield row(need, "leace-fast", ingest, rates, CALLS, True)
        shifted = torch.arange(dim, device=device) % 2 * 10
        turn = rotation(lambda: (torch.randn(rows, dim, device=device) + shifted).bfloat16())
        yield row(need, "leace-fast, with a tile", ingest, rates, CALLS, True)
    goal = torch.empty(rows, dim, dtype=torch.bfloat16, device=device)
    yield row(need, "copy", lambda: goal.copy_(turn()), rates, CALLS, True)


def by_class(device: torch.device, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Time a second moment for each class."""
    dim, rows = BY_CLASS
    turn, y = stream(rows, dim, torch.bfloat16, device), labels(rows, CLASSES, device)
    moments = Moments(dim, CLASSES, per_class=True, device=device)
    yield row(work("by class", rows, dim, 2), "leace-fast", lambda: moments.update(turn(), y), rates)


def many_sites(device: torch.device, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Time all sites of a model in one step, beside the matrix products of a forward pass of 8e9 parameters."""
    sites, dim, rows = SITES
    turn, y = stream(rows, dim, torch.bfloat16, device), labels(rows, 2, device)
    moments = [Moments(dim, 2, device=device) for _ in range(sites)]

    def step() -> None:
        for one in moments:
            one.update(turn(), y)

    need = Work(f"{sites} sites d={dim} N={rows}", sites * rows * dim * 2, sites * rows * dim * (dim + 1))
    seconds, _ = median_seconds(step, 3.0)
    forward = 2 * 8e9 * rows / rates["bfloat16"]
    yield row(need, "leace-fast", step, rates, share_of_forward_floor=seconds / forward)
