"""Every kernel as it is launched, compiled for devices that are not here: instructions, registers, shared memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import compiled
from compiled import SHARED, Built, Launch

AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
DEVICES = [AMPERE, HOPPER, BLACKWELL]
ROWS = [
    (torch.bfloat16, "high"),
    (torch.float16, "high"),
    (torch.float32, "high"),
    (torch.float32, "low"),
    (torch.float32, "ieee"),
]
KINDS: dict[str, dict[str, Any]] = {
    "two classes": {},
    "many classes": {"classes": 1024},
    "by class, weighted": {"dim": 768, "classes": 10, "per_class": True, "weighted": True},
    "targets, odd width": {"dim": 1000, "classes": 1, "targets": 3},
    "narrow": {"dim": 64, "weighted": True},
    "wide": {"dim": 16384},
}
# The instruction that multiplies tiles.
PRODUCT = {AMPERE: r"mma\.sync\.aligned\.m16n8k16", HOPPER: r"wgmma\.mma_async", BLACKWELL: r"tcgen05\.mma"}
ADD = r"\badd(\.rn)?\.f32 "
ADD_PAIR = r"\badd(\.rn)?\.f32x2 "


def check(launch: Launch, built: Built, capability: tuple[int, int]) -> None:
    """What holds of every kernel: nothing is spilled, and it fits the device."""
    assert built.stack == built.spilled == 0, f"{launch.name} spills: {built.stack} bytes"
    assert built.registers <= 255 and built.shared <= SHARED[capability]
    assert built.registers * launch.warps * 32 <= 65536
    assert not re.search(r"\b(atom|red)\.(global|gpu|add)", built.ptx), f"{launch.name} uses atomics on global memory"


def check_update(launch: Launch, built: Built, capability: tuple[int, int]) -> None:
    """Products on tensor cores, and their sums moved out by real additions, one for each number that is held."""
    tile, warps = launch.sizes["BLOCK"], launch.warps
    held = tile * tile // (32 * warps)
    assert 512 <= launch.sizes["PROMOTE"] <= 1024
    additions = built.count(ADD) + 2 * built.count(ADD_PAIR)
    assert additions >= held, f"{additions} float32 additions for {held} numbers: the promotion was folded away"
    if tile == 128:
        assert built.count(PRODUCT[capability]) > 0
    else:
        assert built.count("fma.rn.f32") > tile and not built.count("mma"), "true float32"
    # A program reads the prepared tile or the rows themselves, by a choice of descriptors: these must agree.
    assert len(built.descriptors) == (1 + launch.sizes["FETCH"] if launch.sizes["DESCRIPTOR"] else 0)
    assert all(one == built.descriptors[0] for one in built.descriptors)
    if capability == HOPPER and tile == 128:
        assert built.count(r"cp\.async\.bulk\.tensor") > 0
        # In the loop a product may still run while the next one is begun.
        assert "wgmma.wait_group.sync.aligned 1" in re.sub(r"\s+", " ", built.ptx)


def check_all(capability: tuple[int, int], dtype: torch.dtype, precision: str, names: set[str], **kind: Any) -> None:
    found = [one for one in compiled.launches(capability, dtype, precision, **kind) if not names or one.name in names]
    assert found
    for launch in found:
        built = compiled.build(launch, capability)
        check(launch, built, capability)
        if launch.name == "rank_update":
            check_update(launch, built, capability)


def test_product_on_hopper() -> None:
    check_all(HOPPER, torch.bfloat16, "high", {"rank_update"})


def test_ingest_on_hopper() -> None:
    check_all(HOPPER, torch.bfloat16, "high", {"ingest", "sum_chunks", "scan_counts"})


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("capability", DEVICES, ids=lambda it: f"sm_{it[0]}{it[1]}")
@pytest.mark.parametrize(("dtype", "precision"), ROWS, ids=lambda it: str(it).removeprefix("torch."))
def test_everything_that_ships(
    capability: tuple[int, int], dtype: torch.dtype, precision: str, kind: dict[str, Any]
) -> None:
    check_all(capability, dtype, precision, set(), **kind)


def test_a_promotion_that_is_folded_away_is_seen() -> None:
    """Without one, a kernel has no float32 addition for each number."""
    launch = next(one for one in compiled.launches(HOPPER, torch.bfloat16) if one.name == "rank_update")
    built = compiled.build(launch, HOPPER)
    folded = replace(built, ptx=re.sub(ADD, "mov.b32 ", built.ptx))
    with pytest.raises(AssertionError, match="folded away"):
        check_update(launch, folded, HOPPER)


def test_no_number_of_rows_is_compiled_in() -> None:
    """What changes from batch to batch is an argument like any other, also where it is 1 or a multiple of 16."""
    varying = {"rows", "begin", "count", "first", "length", "segments", "again", "fetched", "plane_rows"}
    varying |= {"chunk_room", "rows_in_all"}
    for launch in compiled.launches(HOPPER, torch.float32):
        named = {
            launch.kernel.arg_names[one] if isinstance(one, int) else one for one in launch.kernel.do_not_specialize
        }
        assert varying & set(launch.kernel.arg_names) <= named, launch.name
        assert not varying & set(launch.sizes)


@pytest.mark.nightly
def test_launches_bind_as_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton specialises the arguments itself, up to the launch; the second run of ingest compiles nothing."""
    from leace_fast.triton_kernels import launches

    class Driver:
        def get_current_target(self) -> Any:
            return compiled.GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: Any = None) -> int:
            return 0

    built: list[tuple[str, str]] = []

    def warm_up(kernel: Any, grid: Any, arguments: Any, warps: int) -> None:
        made = kernel.warmup(*arguments, grid=grid, num_warps=warps, enable_fp_fusion=True)
        built.append((kernel.fn.__name__, made.hash))

    @contextmanager
    def warming() -> Iterator[list[Launch]]:
        monkeypatch.setattr(launches, "launch", warm_up)
        yield []

    monkeypatch.setattr(compiled, "recorded", warming)
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", Driver())
    compiled.launches(HOPPER, torch.bfloat16, weighted=True)
    names = [name for name, _ in built]
    assert names.count("ingest") == 2 and len(set(built)) == len(built) - 1
    assert names[-2:] == ["rank_update", "add_partials"]


@pytest.mark.parametrize("dim", [1, 64, 768, 2048, 4096, 8192, 16384])
@pytest.mark.parametrize("processors", [84, 108, 132, 148])
def test_few_tiles_are_split(dim: int, processors: int) -> None:
    """A product of few tiles keeps most processors busy, and one of many is not split."""
    from leace_fast.triton_kernels.configs import block_rows, padded, split_count, triangle_size

    tiles, rows = triangle_size(padded(dim) // 128), block_rows(dim)
    splits = split_count(tiles, processors, rows)
    waves = -(-tiles * splits // processors)
    assert 4096 <= rows <= 32768 and 1 <= splits <= 32
    if dim >= 768:
        assert tiles * splits / (waves * processors) >= 0.75
    if dim >= 4096 and processors == 132:
        assert splits <= 2
