"""Statistics on a stream of their own, with emulated streams: ordered where memory is shared, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import streams
import torch
from torch import nn

from leace_fast import Moments, record
from leace_fast.statistics import _kernels as kernels
from leace_fast.statistics import _streams as ours

triton = pytest.importorskip("triton")
ROWS = 16  # of a block


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[streams.Cuda]:
    from leace_fast.triton_kernels import configs, launches

    emulated = streams.Cuda()
    monkeypatch.setattr(kernels, "DEVICES", ["cpu"])
    monkeypatch.setattr(kernels, "_KERNELS", {})
    monkeypatch.setattr(configs, "block_rows", lambda dim: ROWS)
    monkeypatch.setattr(launches, "launch", emulated.launch)
    monkeypatch.setattr(ours, "cuda", emulated)
    monkeypatch.setattr(ours, "has_streams", lambda device: True)
    monkeypatch.setattr(ours, "keep", emulated.keep)
    with emulated:
        yield emulated


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def passes(model: nn.Module, number: int, rows: int = 6) -> None:
    for _ in range(number):
        model(torch.randn(1, rows, 8), concept_labels=torch.zeros(1, rows, dtype=torch.int64))


@pytest.mark.parametrize("rows", [6, 16, 40])
def test_products_are_taken_aside_and_in_order(cuda: streams.Cuda, rows: int) -> None:
    model = Model()
    with torch.no_grad(), record(model, ["first", "second"], num_classes=2) as moments:
        passes(model, 7, rows)
        where = {what: name for name, what in cuda.work}
        assert where["stage_rows"] == "main" and where["rank_update"] == where["ingest"] == "side"
        assert moments["first"].count == 0  # a read in between is ordered too; nothing is really added here
        passes(model, 7, rows)
    for one in moments.values():
        one.copy().merge(one)
    assert not cuda.races
    sums = moments["first"]._sums.state.second.untyped_storage()._cdata
    assert {("side", sums), ("main", sums)} <= cuda.kept


def test_the_next_pass_does_not_wait_for_all_of_the_last_one(cuda: streams.Cuda) -> None:
    """While the products of the second site are taken, the first may already take rows again."""
    model = Model()
    seen: list[tuple[int, int]] = []

    def look(*_: object) -> None:
        side = next(iter(recorder.aside._streams.values()), None)
        if side is not None:
            seen.append((cuda.main.clock.get("side", 0), side.clock.get("side", 0)))

    with torch.no_grad(), record(model, ["first", "second"], num_classes=2):
        recorder = next(hook for hook in model._forward_hooks.values()).__wrapped__.__self__  # type: ignore[attr-defined]
        passes(model, 1, 16)
        model.first.register_forward_hook(look)
        passes(model, 4, 16)
    assert len(seen) == 4 and all(0 < waited < queued for waited, queued in seen[1:])


def test_nothing_is_allocated_once_warm(cuda: streams.Cuda) -> None:
    moments = [Moments(8, 2) for _ in range(3)]
    x, y = torch.randn(10, 8), torch.zeros(10, dtype=torch.int64)
    aside = ours.Aside()

    def step() -> None:
        for one in moments:
            one._stage(x, y, None)
        for one in moments:
            with aside.on(one.device):
                one._commit()

    for _ in range(3):
        step()
    before = cuda.allocations
    for _ in range(20):
        step()
    assert cuda.allocations == before and not cuda.races


def test_streams_of_the_user_and_rows_for_plain_torch(cuda: streams.Cuda) -> None:
    moments, y = Moments(8, 2), torch.zeros(20, dtype=torch.int64)
    other = streams.Stream(name="other")
    with cuda.stream(other):
        alone = Moments(8, 2)  # never on the main stream, but with the same scratch memory
    for dtype in (torch.float32, torch.float32, torch.bfloat16):
        moments.update(torch.randn(20, 8).to(dtype), y)
        with cuda.stream(other):
            moments.update(torch.randn(20, 8).to(dtype), y)
            alone.update(torch.randn(20, 8).to(dtype), torch.zeros(20, dtype=torch.int64))
    moments.update(torch.randn(20, 8, dtype=torch.float64), y)
    assert not cuda.races


def test_streams_that_do_not_wait_are_seen(cuda: streams.Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.Stream, "wait_event", lambda self, event: None)
    model = Model()
    with torch.no_grad(), record(model, ["first"], num_classes=2):
        passes(model, 6)
    assert cuda.races
