"""Files: whole or not at all, exact, and never read when a single bit of them is not what was written."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
import torch

from leace_fast import Eraser, Moments, leace
from leace_fast import _files as files
from leace_fast._files import load_tensors, save_tensors


@pytest.fixture
def eraser_file(tmp_path: Path) -> Path:
    path = tmp_path / "eraser.safetensors"
    leace(cases.classes(300, 6, 3).moments()).with_site("model.norm").save(path)
    return path


@pytest.fixture
def moments_file(tmp_path: Path) -> Path:
    path = tmp_path / "moments.safetensors"
    cases.classes(300, 3, 2).moments().save(path)
    return path


def refused(path: Path, data: bytes) -> None:
    """Write other bytes and see both readers refuse them with ValueError, and nothing else."""
    path.write_bytes(data)
    for reader in (Eraser, Moments):
        with pytest.raises(ValueError, match="is damaged or no file of leace-fast .* write it again"):
            reader.load(path)


def test_content_comes_back_to_the_bit(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4, dtype=torch.float64).mT,
        "b": torch.tensor([0.0, -0.0, torch.nan, torch.inf, 5e-324], dtype=torch.float64),
        "c": torch.arange(5),
        "d": torch.empty(0, 3),
    }
    header = {"text": 'quotes " and \\ and ümlaut and "sha256":"', "number": 0.1, "none": None, "list": [1, 2]}
    save_tensors(tmp_path / "f.safetensors", "test", tensors, header)
    loaded, read = load_tensors(tmp_path / "f.safetensors", "test")
    assert {**header, "kind": "test", "format_version": 1} == read
    for name, tensor in tensors.items():
        bits = [part.contiguous().flatten().view(torch.uint8).tolist() for part in (tensor, loaded[name])]
        assert bits[0] == bits[1] and loaded[name].shape == tensor.shape and loaded[name].dtype == tensor.dtype


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    eraser = leace(cases.classes(300, 6, 3).moments())
    written = set()
    for _ in range(20):
        eraser.save(tmp_path / "file")
        written.add((tmp_path / "file").read_bytes())
    assert len(written) == 1


def test_any_safetensors_reader_opens_it(eraser_file: Path, moments_file: Path) -> None:
    from safetensors import safe_open

    with safe_open(eraser_file, "pt") as file:
        header = json.loads(file.metadata()[files.KEY])
        assert set(file.keys()) == {"left", "right", "mean", "mean_solve"}
    assert {name: header[name] for name in ("kind", "dim", "rank", "dtype", "method", "site", "format_version")} == {
        "kind": "eraser",
        "dim": 6,
        "rank": 2,
        "dtype": "float64",
        "method": "leace",
        "site": "model.norm",
        "format_version": 1,
    }
    with safe_open(moments_file, "pt") as file:
        header = json.loads(file.metadata()[files.KEY])
    assert header["contains"] == "class means and second moments of the data"


def test_every_truncation_is_refused(eraser_file: Path) -> None:
    data = eraser_file.read_bytes()
    for length in range(len(data)):
        refused(eraser_file, data[:length])
    refused(eraser_file, data + b"\0")
    refused(eraser_file, data + data)


@pytest.mark.parametrize("flips", [500, pytest.param(10_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("fixture", ["eraser_file", "moments_file"])
def test_flipped_bits_are_refused(fixture: str, flips: int, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    data, chance = path.read_bytes(), random.Random(0)
    for _ in range(flips):
        place, bit = chance.randrange(len(data)), chance.randrange(8)
        refused(path, data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])


@pytest.mark.parametrize("edits", [1000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_edited_headers_are_refused(eraser_file: Path, edits: int) -> None:
    data = eraser_file.read_bytes()
    for edited in edited_headers(data, edits):
        assert edited != data
        refused(eraser_file, edited)


def edited_headers(data: bytes, count: int) -> Iterator[bytes]:
    """Yield files whose header is another: characters changed, added and left out, values and keys exchanged."""
    chance = random.Random(1)
    size = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + size], data[8 + size :]
    parsed = json.loads(header)
    while count:
        kind = chance.randrange(6)
        place, letter = chance.randrange(size), bytes([chance.choice(b' 09afAF"{}[]:,\\-.eE\x00\xff')])
        if kind == 0:
            other = header[:place] + letter + header[place + 1 :]
        elif kind == 1:
            other = header[:place] + letter + header[place:]
        elif kind == 2:
            other = header[:place] + header[place + chance.randrange(1, 9) :]
        elif kind == 3:  # another length, with the same text
            length = chance.choice(
                [0, 1, size - 1, size + 1, size + 8, 2**31, 2**63, 2**64 - 1, chance.randrange(size)]
            )
            yield length.to_bytes(8, "little") + header + body
            count -= 1
            continue
        elif kind == 4:
            other = json.dumps(changed(parsed, chance)).encode()
        else:  # a second key of the same name, before or after
            extra = b'"__metadata__":{"sha256":"' + b"0" * 64 + b'"}'
            other = (
                b"{" + extra + b"," + header[1:]
                if chance.random() < 0.5
                else header.rstrip()[:-1] + b"," + extra + b"}"
            )
        if other != header:
            yield len(other).to_bytes(8, "little") + other + body
            count -= 1


def changed(parsed: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Return a header with one entry of one tensor, or of the metadata, exchanged, renamed or left out."""
    twin = json.loads(json.dumps(parsed))
    name = chance.choice(list(twin))
    key = chance.choice(list(twin[name]))
    action = chance.randrange(3)
    if action == 0:
        values = [
            "F32",
            "F64",
            "I64",
            [6, 2],
            [2, 6],
            [12],
            [0, 0],
            [0, 96],
            [96, 0],
            [-1, 5],
            None,
            7,
            "",
            {},
            "{}",
            [],
        ]
        twin[name][key] = chance.choice([value for value in values if value != twin[name][key]])
    elif action == 1:
        twin[name][key + "x"] = twin[name].pop(key)
    else:
        del twin[name]
    return twin


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\0" * 4096,
        b"\xff" * 64,
        b"not a file of tensors at all",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (20).to_bytes(8, "little") + b'{"__metadata__":null}',
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path / "other.safetensors", content)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"left": torch.ones(3, 1), "right": torch.ones(1, 3)}, path)
    refused(path, path.read_bytes())
    torch.save({"left": torch.ones(3, 1)}, path)
    refused(path, path.read_bytes())


def test_a_file_of_the_other_kind_is_refused(eraser_file: Path, moments_file: Path) -> None:
    with pytest.raises(ValueError, match="holds 'eraser', expected 'moments': load it with the class that wrote it"):
        Moments.load(eraser_file)
    with pytest.raises(ValueError, match="holds 'moments', expected 'eraser': load it with the class that wrote it"):
        Eraser.load(moments_file)


def test_a_later_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FORMAT_VERSION", 2)
    save_tensors(tmp_path / "later", "eraser", {"left": torch.ones(1)}, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format version 2, this release reads up to 1: update leace-fast"):
        Eraser.load(tmp_path / "later")


def test_absent_file(tmp_path: Path) -> None:
    for reader in (Eraser, Moments):
        with pytest.raises(FileNotFoundError, match="absent"):
            reader.load(tmp_path / "absent")


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/absent for e.safetensors: make it first"):
        Eraser(torch.eye(2), torch.eye(2)).save(tmp_path / "absent" / "e.safetensors")


@pytest.mark.parametrize("step", ["fsync", "replace", "fdopen"])
def test_a_failed_write_leaves_the_old_file(eraser_file: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, folder = eraser_file.read_bytes(), sorted(eraser_file.parent.iterdir())

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="the disk is full"):
        Eraser(torch.ones(3, 1), torch.ones(1, 3)).save(eraser_file)
    monkeypatch.undo()
    assert eraser_file.read_bytes() == before and sorted(eraser_file.parent.iterdir()) == folder


def test_written_to_disk_before_it_is_renamed(eraser_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (steps.append(name), real(*a))[1])
    Eraser(torch.ones(3, 1), torch.ones(1, 3)).save(eraser_file)
    assert steps == ["fsync", "replace", "fsync"], "the file, then its name, then the folder"
    assert eraser_file.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.name != "posix", reason="other systems have no umask")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o000])
def test_rights_are_those_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write_bytes(tmp_path / "written", b"data")
        (tmp_path / "plain").write_bytes(b"data")
    finally:
        os.umask(before)
    written, plain = ((tmp_path / name).stat().st_mode & 0o777 for name in ("written", "plain"))
    assert written == plain == 0o666 & ~umask


def test_nothing_imports_pickle() -> None:
    package = Path(files.__file__).parent
    found = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) (pickle|dill|cloudpickle|joblib)|torch\.load\(", path.read_text(), re.M)
    ]
    assert found == []


def a_folder(path: Path) -> Path:
    """A folder with a folder, files, and links out of it."""
    outside = path.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "kept").write_text("kept")
    (path / "inner").mkdir(parents=True, exist_ok=True)
    for name in ("a", "inner/b"):
        (path / name).write_text(name)
    for name in ("link", "inner/link"):
        if not (path / name).is_symlink():
            (path / name).symlink_to(outside, target_is_directory=True)
    return path


def test_a_folder_is_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    files.remove_folder(a_folder(tmp_path / "folder"))
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    (tmp_path / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    files.remove_folder(tmp_path / "link")
    files.remove_folder(tmp_path / "nothing")
    assert (tmp_path / "link" / "kept").read_text() == "kept"


def test_removing_a_folder_can_be_interrupted_at_any_instruction(tmp_path: Path) -> None:
    """Nothing but the interruption is raised, as where a descriptor is closed twice, and the next call removes all."""
    at, finished = 0, False
    while not finished:
        folder, count = a_folder(tmp_path / "folder"), 0

        def step(frame: Any, event: str, argument: Any, at: int = at) -> Any:
            nonlocal count
            frame.f_trace_opcodes = True
            if event == "opcode":
                count += 1
                if count == at + 1:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return step

        sys.settrace(step)
        try:
            files.remove_folder(folder)
            finished = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        files.remove_folder(folder)
        assert not folder.exists() and (tmp_path / "outside" / "kept").exists()
        at += 1
    assert at > 100


@pytest.mark.parametrize("name", ["folder", "pipe"])
def test_saving_takes_the_place_of_files_alone(name: str, tmp_path: Path) -> None:
    """As root, a rename would put a file in the place of a device, such as /dev/null."""
    path = tmp_path / name
    path.mkdir() if name == "folder" else os.mkfifo(path)
    with pytest.raises((IsADirectoryError, ValueError), match=f"{name} is (a folder|no regular file)"):
        files.write_bytes(path, b"content")
    assert not path.is_file() and len(list(tmp_path.iterdir())) == 1


def test_numbers_of_open_files_are_no_paths() -> None:
    with pytest.raises(TypeError):
        Eraser.load(0)  # type: ignore[arg-type]
