"""Saving and scrubbing that are killed, or interrupted, at any point: what was before, or what was to come, whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from labelled_models import CLASSES, labelled_batches
from scrubbed_models import eraser_of

from leace_fast import Moments, Scrubber, scrub
from leace_fast.scrubbing import _together

ROOT = Path(__file__).parents[2]
SITES = [f"layers.{n}" for n in range(4)]


def scrubber_of(name: str, sites: list[str] = SITES) -> Scrubber:
    return Scrubber({site: eraser_of(f"{name} {site}") for site in sites}, "org/" + name)


def same(one: Scrubber, two: Scrubber) -> bool:
    return one.model_id == two.model_id and all(
        torch.equal(one[site].left, two[site].left) and torch.equal(one[site].right, two[site].right) for site in two
    )


KILLED = """
import os, sys
sys.path[:0] = [{tests!r}, {tests!r} + "/scrubbing"]
import test_interrupted
made, left = test_interrupted.scrubber_of("new", ["layers.0", "layers.1", "other"]), int(sys.argv[2])

def watch(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)

sys.addaudithook(watch)
made.save_pretrained(sys.argv[1])
print("done")
"""


@pytest.mark.skipif(os.name != "posix", reason="no SIGKILL")
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_save_that_is_killed_leaves_the_old_or_the_new_scrubber(every: int, tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "out"
    script.write_text(KILLED.format(tests=str(ROOT / "tests")))
    old, new = scrubber_of("old"), scrubber_of("new", ["layers.0", "layers.1", "other"])
    found: set[str] = set()
    for step in range(0, 100, every):
        old.save_pretrained(folder)
        (folder / "notes.txt").write_text("mine")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, folder, str(step)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}"},
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        loaded = Scrubber.from_pretrained(folder)
        found.add(loaded.model_id)
        assert same(loaded, old if loaded.model_id == "org/old" else new), step
        assert (folder / "notes.txt").read_text() == "mine"
        if "done" in done.stdout:
            break
    assert found == {"org/old", "org/new"} and "done" in done.stdout
    names = {f"{site}.safetensors" for site in ("layers.0", "layers.1", "other")}
    assert {path.name for path in folder.iterdir()} == {*names, "scrubber.json", "notes.txt"}, "nothing is left behind"


@pytest.mark.parametrize("step", range(12))
def test_a_save_that_fails_leaves_the_old_or_the_new_scrubber(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full at any write or rename; and the save that follows clears up."""
    old, new = scrubber_of("old"), scrubber_of("new")
    old.save_pretrained(tmp_path)
    real, calls = os.replace, iter(range(100))

    def failing(source: Any, target: Any) -> None:
        if next(calls) == step:
            raise OSError(28, "No space left on device", str(tmp_path))
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    try:
        new.save_pretrained(tmp_path)
    except OSError as error:
        assert str(tmp_path) in str(error)
    monkeypatch.undo()
    loaded = Scrubber.from_pretrained(tmp_path)
    assert same(loaded, old) or same(loaded, new)
    new.save_pretrained(tmp_path)
    assert same(Scrubber.from_pretrained(tmp_path), new)
    assert {path.name for path in tmp_path.iterdir()} == {*(f"{site}.safetensors" for site in SITES), "scrubber.json"}


def test_sites_of_an_older_save_go_and_changed_files_stay(tmp_path: Path) -> None:
    scrubber_of("old").save_pretrained(tmp_path)
    (tmp_path / "layers.3.safetensors").write_bytes(b"changed by someone")
    scrubber_of("new", SITES[:2]).save_pretrained(tmp_path)
    left = {f"{site}.safetensors" for site in (*SITES[:2], "layers.3")}
    assert {path.name for path in tmp_path.iterdir()} == {*left, "scrubber.json"}


def test_a_file_under_its_new_name_is_read(tmp_path: Path) -> None:
    """As a save leaves it that was killed between the index and the renames."""
    scrubber_of("new").save_pretrained(tmp_path)
    path = tmp_path / "layers.1.safetensors"
    path.rename(_together._beside(path, _together.digest_of(path.read_bytes())))
    scrubber_of("old", ["layers.1"]).save_pretrained(tmp_path / "other")
    path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    assert same(Scrubber.from_pretrained(tmp_path), scrubber_of("new"))


# ------------------------------------------------------------------------------------------------ interruptions


def interrupted(action: Callable[[], Any], after: float) -> bool:
    """Run something that SIGINT comes to after some seconds; tell whether it was cut off."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(after, 1e-6))
        try:
            action()
            return False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


POINTS = pytest.mark.parametrize("points", [12, pytest.param(500, marks=pytest.mark.nightly)])
needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")


@needs_timer
@POINTS
def test_interrupted_saves(points: int, tmp_path: Path) -> None:
    old, new, chance = scrubber_of("old"), scrubber_of("new"), random.Random(0)
    old.save_pretrained(tmp_path)
    whole, cut = 1.2 * seconds(lambda: scrubber_of("new").save_pretrained(tmp_path / "other")), 0
    for _ in range(points):
        old.save_pretrained(tmp_path)
        cut += interrupted(lambda: new.save_pretrained(tmp_path), chance.random() * whole)
        loaded = Scrubber.from_pretrained(tmp_path)
        assert same(loaded, old) or same(loaded, new)
    assert cut


@needs_timer
@POINTS
def test_interrupted_saves_of_moments(points: int, tmp_path: Path) -> None:
    x, y, path, chance = torch.randn(500, 8), torch.arange(500) % 2, tmp_path / "moments", random.Random(1)
    old, new = Moments(8, 2).update(x, y), Moments(8, 2).update(x + 1, y)
    wanted = new.copy().covariance
    new.save(path)
    after = path.read_bytes()
    old.save(path)
    before = path.read_bytes()
    whole = 1.2 * seconds(lambda: new.save(path))
    for _ in range(points):
        path.write_bytes(before)
        interrupted(lambda: new.save(path), chance.random() * whole)
        assert path.read_bytes() in (before, after)
        assert torch.equal(new.covariance, wanted)


@needs_timer
@POINTS
@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_interrupted_scrubs_go_on_to_the_same_bits(
    mode: Any, points: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leace_fast.scrubbing._parallel.SAVED_EVERY", 1)
    model, batches, chance = tiny_models.build("llama", torch.float32), labelled_batches("llama", 3), random.Random(2)
    options: dict[str, Any] = {"mode": mode, "num_classes": CLASSES, "track": lambda items, stage: items}
    wanted = scrub(model, batches, checkpoint=tmp_path / "whole", **options)
    whole = seconds(lambda: scrub(model, batches, checkpoint=tmp_path / "timed", **options))
    found, folder, begun = [], tmp_path / "0", 0

    def run() -> None:
        found[:] = [scrub(model, batches, checkpoint=folder, **options)]

    for point in range(points):
        if not interrupted(run, chance.random() * whole):
            assert all(torch.equal(found[0][site].right, wanted[site].right) for site in wanted)
            begun += 1
            folder = tmp_path / str(point + 1)
    run()
    assert all(torch.equal(found[0][site].right, wanted[site].right) for site in wanted)
    assert not any(module._forward_hooks for module in model.modules()), "the model is left as it was"
