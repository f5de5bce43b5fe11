"""A folder written anew: the older one or the newer one, whole, wherever it is stopped; what else it holds stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leace_fast import _folders as folders
from leace_fast._folders import in_place_of

ROOT = Path(__file__).parents[1]


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(folder: Path, text: str) -> None:
    with in_place_of(folder, "index") as new:
        (new / "inner").mkdir()
        for name in ("a", "inner/b", "index"):
            (new / name).write_text(text)


ALL = ("a", "index", "inner/b")


@pytest.fixture(params=["exchanged", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "one by one":
        monkeypatch.setattr(folders, "_exchanged", lambda new, old: False)
    elif sys.platform != "linux":
        pytest.skip("folders are exchanged on Linux alone")
    return request.param


def test_what_is_not_ours_stays(way: str, tmp_path: Path) -> None:
    place = tmp_path / "out"
    write(place, "old")
    (place / "notes.txt").write_text("mine")
    (place / "inner" / "deep").mkdir()
    (place / "inner" / "deep" / "mine").write_text("mine")
    os.symlink("notes.txt", place / "link")
    write(place, "new")
    assert content(place) == dict.fromkeys(ALL, "new") | dict.fromkeys(["notes.txt", "inner/deep/mine", "link"], "mine")
    assert (place / "link").is_symlink() and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_error_inside_leaves_the_older_one(way: str, tmp_path: Path) -> None:
    for before in ({}, dict.fromkeys(ALL, "old")):
        with pytest.raises(RuntimeError, match="stop"), in_place_of(tmp_path / "out", "index") as new:
            (new / "a").write_text("new")
            raise RuntimeError("stop")
        assert content(tmp_path) == {f"out/{name}": text for name, text in before.items()}
        write(tmp_path / "out", "old")


def test_the_working_directory_and_linked_folders_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "real")
    write(tmp_path / "out", "new")
    assert (tmp_path / "out").is_symlink() and content(Path()) == dict.fromkeys(ALL, "new")


def test_a_folder_in_one_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "old")
    make = Path.mkdir

    def refused(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent == tmp_path and not path.exists():
            raise PermissionError(13, "Permission denied")
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refused)
    write(tmp_path / "out", "new")
    assert content(tmp_path / "out") == dict.fromkeys(ALL, "new")


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder or nothing"):
        write(tmp_path / "out", "new")
    assert content(tmp_path) == {"out": "a file"}


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_folders
left = int(sys.argv[2])

def watch(event, arguments):
    global left
    if event in ("open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "ctypes.dlsym"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)

sys.addaudithook(watch)
test_folders.write(Path(sys.argv[1]), "new")
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged on Linux alone")
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.nightly)])
def test_killed_at_any_step(every: int, tmp_path: Path) -> None:
    script, place = tmp_path / "script.py", tmp_path / "parent" / "out"
    script.write_text(KILLED.format(tests=str(ROOT / "tests")))
    found: set[str] = set()
    for step in range(0, 200, every):
        write(place, "old")
        (place / "mine").write_text("mine")
        command = [sys.executable, str(script), str(place), str(step)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        texts = {text for name, text in content(place).items() if name != "mine"}
        assert set(content(place)) == {*ALL, "mine"} and len(texts) == 1, (step, content(place))
        found |= texts
        if "done" in done.stdout:
            break
    else:
        raise AssertionError("it never came to its end")
    assert found == {"old", "new"}
    write(place, "old")
    assert [path.name for path in place.parent.iterdir()] == ["out"], "the next one leaves nothing behind"
