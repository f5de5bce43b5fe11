"""Which tests of the nightly tier a run takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nightly
import pytest
from nightly import PART, ROOT, TOUCHED, Plan, part_of, plan

NAMES = [f"tests/test_it.py::test_that[{n}]" for n in range(2000)]


def commit(root: Path, name: str) -> str:
    (root / name).write_text(name)
    for command in (["add", "."], ["commit", "-q", "-m", name]):
        who = ["-c", "user.name=n", "-c", "user.email=e@example.com", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *command], cwd=root, check=True)
    return nightly.git("rev-parse", "HEAD", root=root) or ""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PART, "3")
    subprocess.run(["git", "init", "-q", "-b", "main", tmp_path / "here"], check=True)
    return tmp_path / "here"


def test_ten_days_run_every_test_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [Plan("base", [], part) for part in range(nightly.PARTS)]
    assert all(sum(one.takes(name) for one in plans) == 1 for name in NAMES)
    assert all(100 < sum(one.takes(name) for name in NAMES) < 300 for one in plans)
    assert all(Plan("base", [], None).takes(name) for name in NAMES)


def test_another_part_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PART, raising=False)
    assert nightly.part_to_run() in range(10)
    for asked, part in {"0": 0, "9": 9, "all": None}.items():
        monkeypatch.setenv(PART, asked)
        assert nightly.part_to_run() == part
    for wrong in ("10", "-1", "", "some"):
        monkeypatch.setenv(PART, wrong)
        with pytest.raises(pytest.UsageError, match=f"{PART} is '{wrong}', expected 0 to 9, or all"):
            nightly.part_to_run()


@pytest.mark.parametrize("row", TOUCHED, ids=lambda row: row[0])
def test_what_is_touched_is_run(row: tuple[str, list[str]]) -> None:
    path, tests = row
    assert list(ROOT.glob(path.replace("*", "**/*", 1))), "no such file"
    for test in tests:
        file = ROOT / test.partition("::")[0]
        assert "mark.nightly" in file.read_text(encoding="utf-8")
        name = test.replace("*", "x")
        other = (part_of(name) + 1) % nightly.PARTS
        assert Plan("base", [path.replace("*", "a/b")], other).takes(name)
        assert not Plan("base", ["README.md"], other).takes(name)
        assert Plan(None, [], other).takes(name), "where nothing is known, all may have been touched"


def test_tests_that_were_changed_are_run() -> None:
    name = NAMES[0]
    other = (part_of(name) + 1) % nightly.PARTS
    assert Plan("base", ["tests/test_it.py"], other).takes(name)
    assert not Plan("base", ["tests/test_other.py"], other).takes(name)


def test_a_change_is_what_left_the_revision(repository: Path) -> None:
    first = commit(repository, "first")
    subprocess.run(["git", "checkout", "-q", "-b", "branch"], cwd=repository, check=True)
    commit(repository, "second")
    commit(repository, "third")
    assert plan("main", repository) == Plan(first, ["second", "third"], 3)
    (repository / "first").write_text("another")
    (repository / "not added").write_text("new")
    assert plan("main", repository).changed == ["first", "not added", "second", "third"]


def test_on_the_revision_itself_it_is_the_last_commit(repository: Path) -> None:
    commit(repository, "first")
    second = commit(repository, "second")
    commit(repository, "third")
    assert plan("main", repository) == Plan(second, ["third"], 3)
    assert plan("origin/main", repository) == Plan(second, ["third"], 3), "no such revision"


def test_nothing_is_known_without_a_history(repository: Path, tmp_path: Path) -> None:
    commit(repository, "first")
    commit(repository, "second")
    subprocess.run(["git", "clone", "-q", "--depth=1", repository.as_uri(), tmp_path / "shallow"], check=True)
    (tmp_path / "none").mkdir()
    for root in (tmp_path / "shallow", tmp_path / "none"):
        assert plan("origin/main", root) == Plan(None, [], 3)
        assert str(plan("origin/main", root)) == "any file may have changed; part 3 of 0 to 9"


MODULE = """
import pytest
@pytest.mark.nightly
@pytest.mark.parametrize("n", range(60))
def test_nightly(n): pass
def test_always(): pass
"""


@pytest.mark.parametrize("part", ["all", "0", "7"])
def test_pytest_runs_what_is_planned_on_every_worker(part: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(MODULE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-n",
        "2",
        "-p",
        "conftest",
        "--nightly-of=HEAD",
        "-c",
        "/dev/null",
    ]
    environment = os.environ | {PART: part, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [f"test_it.py::test_nightly[{n}]" for n in range(60)]
    wanted = {name for name in names if part in ("all", str(part_of(name)))} | {"test_it.py::test_always"}
    assert {word for line in done.stdout.splitlines() for word in line.split() if "::" in word} == wanted
    assert f"nightly: {'all parts' if part == 'all' else 'part ' + part}" in re.sub(
        "nightly: .*; ", "nightly: ", done.stdout
    )
