"""Files that were crafted, with right checksums: each is refused with ValueError, or what it gives can be used."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crafted
import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from leace_fast import (
    ConditionalEraser,
    Eraser,
    EraserTable,
    Moments,
    QuantileNormalizer,
    Report,
    Scrubber,
    TargetEraser,
    leace,
)
from leace_fast._files import load_tensors
from leace_fast.data._shards import Shards
from leace_fast.scrubbing._checkpoint import Checkpoint
from leace_fast.scrubbing._reading import SiteMoments
from leace_fast.scrubbing._seen import Seen

COUNT = pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.nightly)])
MOST_GROWTH = 2**26  # bytes that the process may come to hold, whatever a few kilobytes of file say


def resident() -> int:
    """The most memory that this process has held, in bytes."""
    if sys.platform != "linux":
        return 0
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def fuzz(count: int, seed: int, craft: Callable[[random.Random], Any], use: Callable[[Any], Any]) -> None:
    """Craft files and use them: ValueError or nothing, memory stays flat, and most are refused."""
    chance, refused = random.Random(seed), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            made = craft(chance)
            if number == count // 10:
                before = resident()
            try:
                use(made)
            except (ValueError, FileNotFoundError) as error:
                assert str(error), number
                refused += 1
            except Exception as error:
                raise AssertionError(f"file {number} of seed {seed}: {error!r}") from error
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # which keeps what was freed
        assert resident() - before < MOST_GROWTH
    assert refused > count / 2, "most changes do harm"


# ------------------------------------------------------------------------------------------------------- moments


def rows(dim: int, count: int = 40) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(count))


def use_moments(moments: Moments) -> None:
    """All that can be done with moments which a file gave; what they hold may be refused."""
    x = rows(moments.dim, 3000)
    if moments.target_dim:
        y: Any = rows(moments.target_dim, 3000)
    else:
        y = torch.arange(3000) % moments.num_classes if moments.num_classes else None
    groups = {"groups": torch.arange(3000) % 7} if moments.cells is not None else {}
    assert all(bool(part.isfinite().all()) for part in (moments._flush().second, moments._flush().sums))
    for do in (
        lambda: moments.update(x, y, **groups),
        lambda: leace(moments) if y is not None else moments.covariance,
        lambda: moments.merge(moments.copy()),
        lambda: moments.remove(moments.copy()),
        lambda: (moments.cross_covariance, moments.target_mean, moments.mean, moments.effective_count),
        lambda: moments.pooled().variance,
        lambda: repr(moments),
    ):
        try:
            do()
        except ValueError as error:
            assert str(error)


KINDS: dict[str, tuple[dict[str, Any], bool, bool]] = {  # arguments, weighted, grouped
    "classes": ({"num_classes": 3}, False, False),
    "weights": ({"num_classes": 2}, True, False),
    "by class": ({"num_classes": 2, "per_class": True}, False, False),
    "targets": ({"target_dim": 2}, False, False),
    "plain": ({}, True, False),
    "groups": ({"num_classes": 2, "precision": "ieee", "nonfinite": "skip"}, False, True),
}


@COUNT
@pytest.mark.parametrize("kind", KINDS)
def test_moments(kind: str, count: int, tmp_path: Path) -> None:
    options, weighted, grouped = KINDS[kind]
    moments, path, x = Moments(5, **options), tmp_path / "moments", rows(5)
    y = rows(2) if "target_dim" in options else torch.arange(40) % options["num_classes"] if options else None
    more = {"weight": torch.rand(40) + 0.1} if weighted else {}
    moments.update(x, y, **more, **({"groups": torch.arange(40) % 4} if grouped else {}))
    moments.save(path)
    tensors, header = load_tensors(path, "moments")

    def use(data: bytes) -> None:
        path.write_bytes(data)
        use_moments(Moments.load(path))

    use(crafted.raw_bytes("moments", tensors, header))  # as it was
    fuzz(count, len(kind), lambda chance: crafted.crafted(tensors, header, chance), use)


# ------------------------------------------------------------------------------------------------------- erasers

REPORT = Report("leace", dim=4, rank=1, rows=10, change=0.1, not_erased=("x",), front=((0, 0.1, 0.2),))
MAPS = {
    "eraser": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1], torch.ones(4), mean_solve=torch.ones(4), report=REPORT),
    "wide eraser": Eraser(torch.eye(4).double(), torch.eye(4).double(), site="model.norm"),
    "translations": ConditionalEraser(rows(4, 3), rows(4, 3), report=REPORT),
    "maps": ConditionalEraser(rows(4, 3), rows(4, 3), torch.randn(3, 4, 4)),
    "maps between": ConditionalEraser(torch.randn(2, 2, 4), torch.randn(2, 2, 4), torch.randn(2, 2, 4, 4)),
    "targets": TargetEraser(torch.randn(4, 2), torch.randn(2)),
    "quantiles": QuantileNormalizer(torch.randn(3, 4, 5).sort().values, torch.randn(3, 4, 5).sort().values),
    "quantiles along axes": QuantileNormalizer(
        torch.randn(2, 1, 5).sort().values, torch.randn(2, 1, 5).sort().values, torch.eye(4)[:, :1], report=REPORT
    ),
}


def use_map(made: Any) -> None:
    if made.dim > 2**16:  # of rank 0: a width that no byte stands for, and rows of it would be the caller's own
        return
    x = torch.ones(3, made.dim)
    assert repr(made) and made.to(torch.float64).dtype == torch.float64
    if isinstance(made, Eraser):
        EraserTable([made])(made.apply_(made(x)), torch.tensor([0, -1, 0]))
        try:
            made.without_offset()
            made.compose(made)
        except ValueError as error:
            assert str(error)
    elif isinstance(made, TargetEraser):
        made(x, torch.ones(3, made.coefficients.shape[1]))
    else:
        labels = torch.arange(3) % made.num_classes
        made(x, *[labels] * (made.source.ndim - 1 if isinstance(made, ConditionalEraser) else 1))


@COUNT
@pytest.mark.parametrize("kind", MAPS)
def test_erasers(kind: str, count: int, tmp_path: Path) -> None:
    made, path = MAPS[kind], tmp_path / "map"
    made.save(path)
    tensors, header = load_tensors(path, made._kind)

    def use(data: bytes) -> None:
        path.write_bytes(data)
        use_map(type(made).load(path))

    use(crafted.raw_bytes(made._kind, tensors, header))
    fuzz(count, len(kind), lambda chance: crafted.crafted(tensors, header, chance), use)


# ----------------------------------------------------------------------------------------- folders with an index


def index_bytes(index: Any) -> bytes:
    """An index with the digest that fits it."""
    if isinstance(index, dict):
        index = {name: value for name, value in index.items() if name != "sha256"}
        covered = {name: value for name, value in index.items() if name != "format_version" or "facts" not in index}
        index["sha256"] = hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()
    return json.dumps(index).encode()


def write_file(path: Path, data: bytes, index: Any, old: str) -> Any:
    """Write a file of a folder, and name its digest in the index in the place of the old one."""
    path.write_bytes(data)
    return json.loads(json.dumps(index).replace(old, hashlib.sha256(data).hexdigest()))


@COUNT
def test_scrubbers(count: int, tmp_path: Path) -> None:
    seen = Seen()
    seen.add({"input_ids": torch.arange(12).view(3, 4)})
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    scrubber = Scrubber({site: MAPS["eraser"] for site in ("a", "b/../c")}, "org/model", "abc", {"hidden_size": 4})
    scrubber._knowing(seen).save_pretrained(whole)
    index = json.loads((whole / "scrubber.json").read_text())
    tensors, header = load_tensors(whole / "a.safetensors", "eraser")

    def craft(chance: random.Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        changed, action = index, chance.randrange(4)
        if action == 0:
            data = crafted.crafted(tensors, header, chance)
            changed = write_file(folder / "a.safetensors", data, changed, index["sites"][0][1])
        elif action == 1:
            data = bytearray((whole / "seen.bin").read_bytes())
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            data = chance.choice([bytes(data), bytes(data[: chance.randrange(len(data))]), bytes(data) + bytes(8)])
            changed = write_file(folder / "seen.bin", data, changed, index["seen"])
        else:
            for _ in range(action - 1):
                changed = crafted.changed_value(changed, chance)
        (folder / "scrubber.json").write_bytes(index_bytes(changed))

    def use(_: Any) -> None:
        loaded = Scrubber.from_pretrained(folder)
        for eraser in loaded.values():
            use_map(eraser)
        if loaded._seen is not None:
            loaded._seen.found({"input_ids": torch.ones(2, 4, dtype=torch.int64)})
        assert repr(loaded) and loaded.identity.differences(scrubber.identity) is not None
        loaded.save_pretrained(tmp_path / "again")

    shutil.copytree(whole, folder)
    use(None)
    fuzz(count, 1, craft, use)


@COUNT
@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_checkpoints(mode: str, count: int, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    facts = {"mode": mode, "sites": ["a", "b"], "method": "leace", "model": "0" * 64}
    first = Checkpoint(whole, facts)
    moments = Moments(4, 2).update(rows(4), torch.arange(40) % 2)
    if mode == "parallel":
        first.add_moments(7, {site: SiteMoments({"it": moments}, None) for site in facts["sites"]}, "0" * 64)
        path, kind = Path("batch-7/0-it.safetensors"), "moments"
    else:
        for site in facts["sites"]:
            first.add(site, MAPS["eraser"])
        path, kind = Path("a.safetensors"), "eraser"
    index = json.loads((whole / "checkpoint.json").read_text())
    tensors, header = load_tensors(whole / path, kind)
    digest = hashlib.sha256((whole / path).read_bytes()).hexdigest()

    def craft(chance: random.Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        changed, action = index, chance.randrange(3)
        if action == 0:
            changed = write_file(folder / path, crafted.crafted(tensors, header, chance), changed, digest)
        for _ in range(action):
            changed = crafted.changed_value(changed, chance)
        (folder / "checkpoint.json").write_bytes(index_bytes(changed))

    def use(_: Any) -> None:
        found = Checkpoint(folder, facts)
        for site in facts["sites"]:
            if (eraser := found.eraser(site)) is not None:
                use_map(eraser)
        _, loaded = found.moments({"it": {"num_classes": 2}}, False, lambda site: torch.device("cpu"))
        for each in loaded.values():
            use_moments(each.concepts["it"])

    shutil.copytree(whole, folder)
    use(None)
    fuzz(count, 2, craft, use)


# -------------------------------------------------------------------------------------------------------- shards


def npy(array: np.ndarray, chance: random.Random) -> bytes:
    """A .npy file, whose header may say something else of its bytes."""
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    if chance.random() < 0.5:
        shape = tuple(chance.choice([size, size, chance.choice(crafted.AXES)]) for size in array.shape)
        order, kind = (
            chance.choice([True, False]),
            chance.choice(["<f4", ">f4", "<f8", "<i8", "|O", "|S0", "<U3", "x", "|V0"]),
        )
        text = repr({"descr": chance.choice([array.dtype.str, kind]), "fortran_order": order, "shape": shape})
        text = chance.choice([text, text, text, text[:-2], "(" * 900, "[" + text]).encode()
        head = np.lib.format.MAGIC_PREFIX + bytes([chance.choice([1, 1, 1, 2, 3, 9]), 0])
        data = head + len(text).to_bytes(2, "little") + text + array.tobytes()
    return chance.choice([data, data, data[: chance.randrange(len(data))], data + bytes(8)])


@COUNT
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy"])
def test_shards(suffix: str, count: int, tmp_path: Path) -> None:
    arrays = {"x": rows(4, 12).numpy(), "y": np.arange(12) % 3, "groups": np.arange(12) % 4}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def craft(chance: random.Random) -> None:
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
        (tmp_path / "shards").mkdir()
        if suffix == ".safetensors":
            changed = crafted.changed_tensors(tensors, chance) if chance.random() < 0.6 else tensors
            data = safetensors_bytes({name: part.contiguous() for name, part in changed.items()}, {"a": "b"})
            data = crafted.changed_layout(data, chance) if chance.random() < 0.6 else data
            (tmp_path / "shards" / "0.safetensors").write_bytes(data)
            return
        files = {name: npy(array, chance) for name, array in arrays.items() if chance.random() < 0.95}
        if suffix == ".npy":
            for name, data in files.items():
                (tmp_path / "shards" / f"{name}.npy").write_bytes(data)
            return
        with zipfile.ZipFile(tmp_path / "shards" / "0.npz", "w", chance.choice([zipfile.ZIP_DEFLATED, 0])) as file:
            for name, data in files.items():
                file.writestr(f"{name}.npy", data)
        if chance.random() < 0.3:
            path = tmp_path / "shards" / "0.npz"
            data = bytearray(path.read_bytes())
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)

    def use(_: Any) -> None:
        for x, y, _groups in Shards(tmp_path / "shards").chunks():
            assert len(x) == len(y)

    fuzz(count, 3, craft, use)


@pytest.mark.parametrize("name", ["x", "y"])
def test_a_shard_that_expands_beyond_measure_is_refused(name: str, tmp_path: Path) -> None:
    sizes = {"x": (2**25, 4), "y": (2**25,)}
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for member in ("y", "x"):
            shape = sizes[member] if member == name else (3, 4)[: len(sizes[member])]
            with file.open(f"{member}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(
                    stream, {"descr": "<f8", "fortran_order": member == "x", "shape": shape}
                )
                for _ in range(int(np.prod(shape)) * 8 // 2**20 + 1):
                    stream.write(bytes(min(2**20, int(np.prod(shape)) * 8)))
    before = resident()
    with pytest.raises(ValueError, match="bytes of memory, at most .* are allowed|its header says"):
        list(Shards(tmp_path))
    assert resident() - before < 2**28


def test_rows_of_a_large_archive_are_never_held_whole(tmp_path: Path) -> None:
    x, y = np.arange(60_000 * 4, dtype=np.float32).reshape(60_000, 4), np.arange(60_000) % 2
    np.savez_compressed(tmp_path / "0.npz", x=x, y=y)
    shards = Shards(tmp_path)
    for _ in range(2):
        assert np.array_equal(torch.cat([part for part, _ in shards]).numpy(), x)
