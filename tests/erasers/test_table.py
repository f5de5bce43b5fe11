"""Tables of erasers: rows of different requests in one call, and erasers that are exchanged meanwhile."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import time
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from leace_fast import Eraser, Scrubber, find_sites, tap
from leace_fast._ops.operators import EXTENSION
from leace_fast.erasers import EraserTable

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KERNEL = "cpu" in EXTENSION.devices  # plain torch gives a row other bits in other batches
RANKS = (3, 1, 0, 2)  # of the erasers of a table


def eraser_of(dim: int, rank: int, seed: int, affine: bool = True) -> Eraser:
    generator = torch.Generator().manual_seed(seed)
    left, right, mean = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (rank, rank, 1))
    return Eraser(left.mT / dim**0.5, right / dim**0.5, mean[0] if affine else None)


def erasers_of(dim: int) -> list[Eraser]:
    return [eraser_of(dim, rank, seed, affine=seed % 2 == 0) for seed, rank in enumerate(RANKS)]


def table_of(erasers: list[Eraser], dtype: torch.dtype = torch.float32, **options: Any) -> EraserTable:
    return EraserTable(erasers, dtype=torch.float64 if dtype == torch.float64 else torch.float32, **options)


def rows_of(count: int, dim: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows, and an index that names every eraser and none."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(-1, len(RANKS), (count,), generator=generator)


@pytest.fixture(params=["copied", "static"])
def memory(request, monkeypatch) -> str:
    """Both ways to keep the factors: in copies (on the CPU), and in one place (on CUDA, for captured graphs)."""
    monkeypatch.setattr(EraserTable, "_keeps_memory", lambda table: request.param == "static")
    return request.param


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_a_copy_is_a_table_of_its_own(memory, copied):
    table, (x, index) = table_of(erasers_of(5)), rows_of(20, 5, torch.float32)
    twin, before = copied(table), table(x, index)
    twin.swap(1, eraser_of(5, 2, 9))
    assert torch.equal(table(x, index), before)
    erasers = erasers_of(5)
    erasers[1] = eraser_of(5, 2, 9)
    assert torch.equal(twin(x, index), table_of(erasers)(x, index))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 5, 64, 130])
def test_each_row_is_erased_by_its_own_eraser_and_others_keep_their_bits(memory, dtype, dim):
    erasers = erasers_of(dim)
    x, index = rows_of(67, dim, dtype)
    y = table_of(erasers, dtype)(x, index)
    assert y.dtype == dtype and y.shape == x.shape
    assert torch.equal(y[index == -1], x[index == -1])
    for i, eraser in enumerate(erasers):
        wanted = eraser(x[index == i].double())
        assert torch.allclose(y[index == i].double(), wanted, rtol=0, atol=4 * torch.finfo(dtype).eps * 4)


@pytest.mark.skipif(not KERNEL, reason="plain torch gives a row other bits in other batches")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 768])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(memory, dtype, dim):
    x, index = rows_of(512, dim, dtype)
    table = table_of(erasers_of(dim), dtype)
    whole = table(x, index)
    for size in (1, 2, 3, 5, 8, 17, 64, 256, 511):
        for begin in (0, 255, 512 - size):
            part = slice(max(begin, 0), max(begin, 0) + size)
            assert torch.equal(table(x[part], index[part]), whole[part]), size
    order = torch.randperm(512, generator=torch.Generator().manual_seed(1))
    assert torch.equal(table(x[order], index[order]), whole[order])


def test_one_eraser_for_all_rows_is_that_eraser(memory):
    erasers = erasers_of(48)
    table = table_of(erasers)
    x, _ = rows_of(33, 48, torch.float32)
    for i, eraser in enumerate(erasers):
        assert torch.allclose(table(x, i), eraser(x), rtol=0, atol=2e-6)
        if KERNEL:
            assert torch.equal(table(x, i), eraser(x))
        assert torch.equal(table(x, i), table(x, torch.full((33,), i)))
    assert torch.equal(table(x, -1), x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_touches_no_other(memory, bad):
    x, index = rows_of(40, 32, torch.float32)
    table = table_of(erasers_of(32))
    clean = table(x, index)
    x[7] = bad
    y = table(x, index)
    others = torch.arange(40) != 7
    assert torch.equal(y[others], clean[others])
    index[7] = -1
    assert torch.equal(table(x, index).nan_to_num(5.0)[7], x.nan_to_num(5.0)[7])


def test_the_index_of_a_sequence_stands_for_its_tokens(memory):
    table = table_of(erasers_of(16))
    x = torch.randn(4, 6, 16)
    per_sequence = torch.tensor([2, -1, 0, 3])
    wanted = table(x, per_sequence[:, None].expand(4, 6).contiguous())
    assert torch.equal(table(x, per_sequence), wanted)
    assert torch.equal(table(x, per_sequence[:, None]), wanted)
    assert torch.equal(table(x, per_sequence.to(torch.int32)), wanted)
    assert torch.equal(table(x[0], torch.tensor([2] * 6)), wanted[0])
    assert table(x[:0], per_sequence[:0]).shape == (0, 6, 16)


def test_in_place(memory):
    table = table_of(erasers_of(16))
    x, index = rows_of(20, 16, torch.float32)
    wanted, kept = table(x, index), x.clone()
    wide = torch.zeros(20, 40)
    wide[:, 8:24] = x
    assert table.apply_(x, index) is x and torch.equal(x, wanted)
    strided = wide[:, 8:24]
    assert table.apply_(strided, index) is strided and torch.equal(strided, wanted)
    assert not wide[:, :8].any() and not wide[:, 24:].any() and not torch.equal(x, kept)


def test_gradients_are_those_of_the_erasers(memory):
    erasers = erasers_of(16)
    table = table_of(erasers, torch.float64)
    x, index = rows_of(20, 16, torch.float64)
    x.requires_grad_()
    (got,) = torch.autograd.grad(table(x, index).square().sum(), x)
    wanted = torch.stack([row if i < 0 else erasers[i](row) for row, i in zip(x, index.tolist(), strict=True)])
    (expected,) = torch.autograd.grad(wanted.square().sum(), x)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("wrong", [-2, 4, 5, 8, 9, 2**40, -(2**40)])
def test_an_unknown_index_is_never_no_erasure(monkeypatch, wrong):
    x, index = rows_of(9, 16, torch.float32)
    index[3] = wrong
    with pytest.raises(IndexError):
        table_of(erasers_of(16))(x, index)
    with pytest.raises(IndexError):
        table_of(erasers_of(16)).apply_(x.clone(), index)
    monkeypatch.setattr(EraserTable, "_keeps_memory", lambda table: True)
    table = table_of(erasers_of(16))
    y = table(x, index)
    others = torch.arange(9) != 3
    assert y[3].isnan().all() and not y[others].isnan().any()
    with pytest.raises(IndexError, match="1 rows had an index outside -1 to 3"):
        table.swap(0, eraser_of(16, 1, 9))
    table(x, index)
    with pytest.raises(IndexError, match="1 rows"):
        table.check()
    table.check()  # told once
    table(x[others], index[others])
    table.check()


def test_wrong_arguments(memory):
    erasers = erasers_of(16)
    table = table_of(erasers)
    x, index = rows_of(9, 16, torch.float32)
    wrong: Any
    for wrong in (index.float(), index == 0, 1.5, True):
        with pytest.raises(TypeError, match="expected integers"):
            table(x, wrong)
    for wrong in (index[:8], index[:, None], torch.zeros(9, 16, dtype=torch.int64)):
        with pytest.raises(ValueError, match="leading dimensions"):
            table(x, wrong)
    with pytest.raises(ValueError):
        table(x[:, :8], index)
    with pytest.raises(TypeError):
        table(x.long(), index)
    with pytest.raises(TypeError):
        table(x.double(), index)
    with pytest.raises(ValueError, match="the table on cpu"):
        table(x.to("meta"), index)
    with pytest.raises(ValueError, match="got none"):
        EraserTable([])
    with pytest.raises(TypeError, match="expected an Eraser"):
        EraserTable([erasers[0], "an eraser"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="width 8"):
        EraserTable([*erasers, eraser_of(8, 1, 0)])
    with pytest.raises(ValueError, match="bfloat16"):
        EraserTable(erasers, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="rank 3.*rank 2 at most"):
        EraserTable(erasers, rank=2)


# -------------------------------------------------------------------------- swaps


def test_swap(memory):
    erasers, new = erasers_of(16), eraser_of(16, 3, 77)
    table = table_of(erasers)
    x, index = rows_of(40, 16, torch.float32)
    before, moved = table(x, index), [*erasers[:1], new, *erasers[2:]]
    first = table._memory  # held: a copy must not come to lie where it was
    for _ in range(3):
        table.swap(1, new)
        assert torch.equal(table(x, index), table_of(moved)(x, index))
        assert torch.equal(table(x, index)[index != 1], before[index != 1])
        table.swap(1, erasers[1])
        assert torch.equal(table(x, index), before)
    assert (table._memory.data_ptr() == first.data_ptr()) == (memory == "static")


def test_a_refused_swap_changes_nothing(memory):
    table = table_of(erasers_of(16))
    x, index = rows_of(40, 16, torch.float32)
    before = table(x, index)
    for wrong in (-1, 4):
        with pytest.raises(IndexError, match=f"erasers 0 to 3, got {wrong}"):
            table.swap(wrong, eraser_of(16, 1, 0))
    with pytest.raises(ValueError, match="higher rank="):
        table.swap(0, eraser_of(16, 4, 0))
    with pytest.raises(ValueError, match="width 8"):
        table.swap(0, eraser_of(8, 1, 0))
    with pytest.raises(TypeError):
        table.swap(0, None)  # type: ignore[arg-type]
    assert torch.equal(table(x, index), before)
    EraserTable(erasers_of(16), rank=4).swap(0, eraser_of(16, 4, 0))


@pytest.mark.skipif(not KERNEL, reason="plain torch looks at the index, which cannot be traced")
def test_a_graph_over_static_memory_sees_swaps(monkeypatch):
    """A captured graph keeps the addresses that it met: here one that is traced with the table's tensors inside."""
    monkeypatch.setattr(EraserTable, "_keeps_memory", lambda table: True)
    erasers, new = erasers_of(16), eraser_of(16, 2, 5)
    table = table_of(erasers)
    x, index = rows_of(30, 16, torch.float32)
    graph: Any = make_fx(table)(x, index)
    assert torch.equal(graph(x, index), table(x, index))
    for i in (0, 3, 0, 0):
        table.swap(i, new)
        assert torch.equal(graph(x, index), table(x, index))
        new = erasers[i]


def stress(monkeypatch: pytest.MonkeyPatch, swaps: int) -> None:
    """Readers run while one eraser of the table goes to and fro: each result is exactly one of the two."""
    one, two = eraser_of(96, 4, 1), eraser_of(96, 4, 2)
    table = table_of([one, eraser_of(96, 4, 3)])
    x, _ = rows_of(64, 96, torch.float32)
    index = torch.arange(64) % 3 - 1
    first = table(x, index)
    table.swap(0, two)
    second = table(x, index)
    assert not torch.equal(first, second)
    calls, seen, mixed, stop = [0, 0], [0, 0], [], threading.Event()

    def read(reader: int) -> None:
        while not stop.is_set():
            calls[reader] += 1  # odd while it runs
            y = table(x, index)
            calls[reader] += 1
            found = [torch.equal(y, first), torch.equal(y, second)]
            seen[0] += found[0]
            seen[1] += found[1]
            if not any(found):
                mixed.append(y)

    def wait_for_calls(_: EraserTable) -> None:
        """What waiting for a device does: all that was begun before has ended, while other work may begin."""
        for reader, call in enumerate(list(calls)):
            while call % 2 and calls[reader] == call:
                time.sleep(0)

    monkeypatch.setattr(EraserTable, "_synchronize", wait_for_calls)
    readers = [threading.Thread(target=read, args=(n,)) for n in range(2)]
    for reader in readers:
        reader.start()
    try:
        for n in range(swaps):
            table.swap(0, (one, two)[n % 2])
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not mixed and all(seen)


def test_swaps_under_load_are_never_mixed(memory, monkeypatch):
    stress(monkeypatch, 2_000)


@pytest.mark.nightly
def test_very_many_swaps_under_load_are_never_mixed(memory, monkeypatch):
    """A million of them took eleven minutes, and in static memory, where each waits for the readers, half an hour."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # s: threads alternate within a swap
    try:
        stress(monkeypatch, 200_000 if memory == "copied" else 20_000)
    finally:
        sys.setswitchinterval(interval)


def test_compiled_in_one_graph_and_swapped(memory):
    torch.compiler.reset()
    table = table_of(erasers_of(16))
    x, index = rows_of(30, 16, torch.float32)
    compiled = torch.compile(lambda x, index: table(x * 2, index) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, index), table(x * 2, index) + 1)
    table.swap(0, eraser_of(16, 2, 5))
    assert torch.equal(compiled(x, index), table(x * 2, index) + 1)
    table.swap(3, eraser_of(16, 2, 6))
    assert torch.equal(compiled(x, index), table(x * 2, index) + 1)


def test_a_batch_of_several_requests_in_a_model():
    model, batch = tiny_models.build("llama"), tiny_models.batch("llama")
    batch = {"input_ids": batch["input_ids"][:1].expand(3, -1)}
    sites = [site.name for site in find_sites(model, batch)]
    one, two = ({site: eraser_of(tiny_models.WIDTH, 2, seed) for site in sites} for seed in (1, 2))
    tables = {site: table_of([one[site], two[site]], torch.float64) for site in sites}
    request = torch.tensor([0, -1, 1])
    with torch.no_grad():
        with tap(model, sites, lambda site, x: tables[site](x, request)):
            got = model(**batch).logits
        clean = model(**batch).logits
        assert torch.allclose(got[1], clean[1], rtol=0, atol=1e-12)
        for row, erasers in ((0, one), (2, two)):
            with Scrubber(erasers).attached(model):
                wanted = model(**batch).logits[row]
            assert torch.allclose(got[row], wanted, rtol=0, atol=1e-10) and not torch.allclose(got[row], clean[row])
