"""Single kernels under Triton's interpreter: the sort, the choice of the shift, the product with all its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws import within
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from leace_fast.statistics import IGNORE
from leace_fast.statistics._state import State
from leace_fast.triton_kernels import block, configs, launches, order
from leace_fast.triton_kernels.rows import Batch, Part, Strided, Waiting
from leace_fast.triton_kernels.update import rank_update, triangle

CPU = torch.device("cpu")


def kernels(
    dim: int,
    classes: int,
    per_class: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    precision: str = "high",
    capability: tuple[int, int] = (8, 0),
) -> block.BlockKernels:
    config = configs.update_config(dtype, precision, capability)
    return block.BlockKernels(dim, classes, 0, per_class, config, CPU, 4)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "block_rows", lambda dim: 512)


@pytest.mark.parametrize(
    ("rows", "classes", "per_class"), [(1, 2, False), (129, 3, True), (500, 1024, False), (1, 11, False)]
)
def check_rows_are_sorted_by_class_and_stay_in_order(rows: int, classes: int, per_class: bool) -> None:
    one = kernels(4, classes, per_class)
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(classes + len(order.LEFT_OUT), (512,), generator=generator).int()
    left_out = torch.zeros(len(block.COUNTERS), dtype=torch.int64)
    bins = one.sizes.bins
    assert bins > classes + len(order.LEFT_OUT), "on a GPU, what lies beyond the last bin is counted in the first"
    one.sort(codes, rows, left_out)
    counts = torch.bincount(codes[:rows], minlength=classes + len(order.LEFT_OUT))
    used = counts[:classes]
    assert torch.equal(one.scratch.order[:rows].long(), codes[:rows].sort(stable=True).indices)
    starts = torch.cat([torch.zeros(1).long(), used.cumsum(0)])
    assert torch.equal(one.scratch.starts.long(), starts)
    align = one.config.step if per_class else 1
    room = (used + align - 1) // align * align
    assert torch.equal(one.scratch.tile_starts.long(), torch.cat([torch.zeros(1).long(), room.cumsum(0)]))
    pieces = (used + configs.CHUNK - 1) // configs.CHUNK
    assert torch.equal(one.scratch.chunks.long(), torch.cat([torch.zeros(1).long(), pieces.cumsum(0)]))
    assert left_out.tolist() == [0, *counts[classes:].tolist()]


def check_labels_become_codes() -> None:
    y = torch.tensor([[0, 2, 3], [-1, IGNORE, 1]], dtype=torch.int16).mT  # (3, 2), with strides of its own
    mask = torch.tensor([[1, 1], [1, 1], [1, 2]])
    weight = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, torch.inf]]).half()

    def strided(part: Tensor) -> Strided:
        return Strided(part, part.stride(0), part.stride(1), 0)

    waiting = Waiting(torch.full((8,), -7).int(), torch.zeros(8).double(), torch.zeros(8, 0).double())
    batch = Batch(2, strided(y), strided(y), strided(mask), strided(weight), IGNORE)
    kernels(4, 3).staging.stage(batch, 0, 6, 1, waiting)
    # Rows (0, 0), (0, 1), (1, 0), ...: 0, -1, 2 of weight 0, -100, 3, 1 with neither a mask nor a weight
    assert waiting.codes.tolist() == [-7, 0, 3 + 1, 3, 3, 3 + 1, 3 + 2, -7]
    kernels(4, 3).staging.stage(batch._replace(mask=None), 5, 1, 0, waiting)
    assert waiting.codes[0] == 3 + 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def check_shift_is_the_median_and_scale_a_power_of_two(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(201, 6, generator=generator) * torch.tensor([1.0, 1.0, 100.0, 0.0, 1e-30, 1.0])
    x += torch.tensor([0.1, 50.0, -1e4, 7.0, 0.0, 0.0])
    x[:, 5] = 0
    x[0], x[1, 1] = 1e6, torch.nan
    x[0, 3], x[0, 5] = 7, 0
    x = x.to(dtype)
    one, state = kernels(6, 2, dtype=dtype), State.empty(6, 2, 0, False, CPU)
    one.sort(torch.zeros(512).int(), 201, torch.zeros(len(block.COUNTERS)).long())
    waiting = Waiting(*(torch.zeros(1) for _ in range(3)))
    one.locate(state, Part(Strided(x, 0, 6, 1), 0, 201, 201), waiting)
    rows = x[(torch.arange(configs.SAMPLES) * 201) // configs.SAMPLES].float()
    median = rows.nanmedian(0).values
    assert torch.equal(state.shift, median.double())
    centred = one.scratch.shift[:6] != 0
    assert centred.tolist() == [dtype == torch.float32, True, True, True, dtype == torch.float32, False]
    assert torch.equal(one.scratch.shift[:6][centred], median[centred])
    spread = ((rows - median).abs().nanmedian(0).values * 1.4826)[:5:4]
    scale = torch.exp2(-torch.floor(torch.log2(spread)))
    if dtype != torch.float32:
        scale[0] = 1  # neither shifted nor of an extraordinary spread
    assert torch.equal(one.scratch.scale[:5:4], scale)
    assert one.scratch.scale[3] == 0.25, "of the value where all are the same"
    assert torch.equal(one.scratch.scale[5:], torch.ones(one.sizes.width - 5)) and not one.scratch.shift[5:].any()


@pytest.mark.parametrize("descriptor", [False, True])
@pytest.mark.parametrize(("dtype", "planes"), [(torch.bfloat16, 1), (torch.bfloat16, 2), (torch.float32, 1)])
def check_product(dtype: torch.dtype, planes: int, descriptor: bool) -> None:
    """Two groups of whole steps, one of them empty in part, over three splits, promoted in between."""
    tile, step, width, rows = 16, 8, 48, 96
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(planes * rows, width, generator=generator).to(dtype)
    starts = torch.tensor([0, 56, 88]).int()
    partial = torch.full((2, 3, 6, tile, tile), torch.nan)
    source = TensorDescriptor.from_tensor(x, [step, tile]) if descriptor else x
    none = torch.zeros(1, dtype=torch.int32)
    tensors = {"tile": source, "x": source, "as_is": none, "bad": none, "tile_starts": starts, "partial": partial}
    counts = {"plane_rows": rows, "group_begin": 0, "width": width}
    sizes = {"STRIDE": 1, "PLANES": planes, "BLOCK": tile, "STEP": step, "PROMOTE": 16, "STAGES": 2}
    launches.Prepared(rank_update, tensors | counts | sizes)((6, 3, 2), DESCRIPTOR=descriptor, FETCH=False)
    wide = x.double()
    for group in range(2):
        part = slice(int(starts[group]), int(starts[group + 1]))
        high = wide[part]
        exact = high.mT @ high
        if planes == 2:
            low = wide[rows:][part]
            exact += low.mT @ high + high.mT @ low
        for index, (i, j) in enumerate(torch.tril_indices(3, 3).mT.tolist()):
            found = partial[group, :, index].sum(0)
            want = exact[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile]
            within(found - want, 1e-4, f"tile {i}, {j} of group {group}")


def check_every_tile_of_a_triangle_is_met_once() -> None:
    """Up to 32768 columns in tiles of 128; the root of the index is rounded."""
    import triton
    import triton.language as tl

    @triton.jit
    def write(rows, columns, BLOCK: tl.constexpr):
        index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        i, j = triangle(index)
        tl.store(rows + index, i)
        tl.store(columns + index, j)

    rows, columns = torch.zeros(2, 32896, dtype=torch.int32).unbind()
    launch: Any = write[(257,)]
    launch(rows, columns, BLOCK=128)
    want = torch.tril_indices(256, 256)
    assert torch.equal(rows.long(), want[0]) and torch.equal(columns.long(), want[1])


def check_weights_that_may_be() -> None:
    """The kernel's range lies within that of plain torch, for it multiplies in float32."""
    from leace_fast.statistics._checks import MOST_WEIGHT

    assert 1e30 == order.MOST_WEIGHT.value <= MOST_WEIGHT
