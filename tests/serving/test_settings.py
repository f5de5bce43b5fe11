"""What a server is told of erasers, and what its requests choose."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import leace_fast as lf
from leace_fast.serving import digest_of_folder
from leace_fast.serving._requests import choice_of, salted
from leace_fast.serving._runners import runner_of
from leace_fast.serving._settings import VARIABLE, Settings

ONE = {"path": "one", "digest": "1" * 64}
BOTH = {
    "erasers": {"one": {**ONE, "strengths": [1, 0.5]}, "two": {"path": "two", "digest": "2" * 64}},
    "default": "two",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    eye = torch.eye(4)
    lf.Scrubber({"norm": lf.Eraser(eye[:, :1], eye[:1])}).save_pretrained(tmp_path / "one")
    return tmp_path / "one"


def test_one_eraser_for_all() -> None:
    settings = Settings.read(ONE)
    assert settings.choices == [("erasers", 1.0)] and not settings.by_request
    assert choice_of(settings, None) == choice_of(settings, {"session_id": "s"}) == 0
    with pytest.raises(ValueError, match="erases every request in the same way"):
        choice_of(settings, {"leace_fast": "none"})


def test_choices_of_requests() -> None:
    settings = Settings.read(BOTH)
    assert settings.choices == [("one", 1.0), ("one", 0.5), ("two", 1.0)]
    said: list[Any] = [
        {},
        {"leace_fast": "one"},
        {"leace_fast": "one", "leace_fast_strength": 0.5},
        {"leace_fast": "none"},
    ]
    assert [choice_of(settings, each) for each in said] == [2, 0, 1, -1]


@pytest.mark.parametrize(
    "said, message",
    [
        ({"leace_fast": "three"}, "expected 'none' or one of"),
        ({"leace_fast": None}, "leace_fast is None"),
        ({"leace_fast": ["one"]}, "leace_fast is"),
        ({"leace_fast": "one", "leace_fast_strength": 2}, r"expected one of \[1.0, 0.5\]"),
        ({"leace_fast": "one", "leace_fast_strength": True}, "leace_fast_strength is True"),
        ({"leace_fast": "one", "leace_fast_strength": "1"}, "leace_fast_strength is '1'"),
        ({"leace_fast": "none", "leace_fast_strength": 1}, "without an eraser"),
        ({"leace_fast_name": "one"}, "'leace_fast_name' is unknown"),
    ],
)
def test_what_a_request_cannot_choose(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choice_of(Settings.read(BOTH), said)


def test_salts_differ_where_erasers_or_strengths_do() -> None:
    settings = Settings.read(BOTH)
    salts = [salted(settings, choice, given) for choice in (-1, 0, 1, 2) for given in (None, "tenant")]
    assert salts[:2] == [None, "tenant"] and len(set(salts)) == 8
    other = {**BOTH, "erasers": {**BOTH["erasers"], "one": {"path": "one", "digest": "3" * 64}}}
    assert salted(Settings.read(other), 0, None) not in salts
    renamed = {"erasers": {"first": ONE}, "default": "none"}
    assert salted(Settings.read(renamed), 0, None) == salted(settings, 0, None), "a name is no part of what is served"


@pytest.mark.parametrize(
    "values, message",
    [
        ([], "expected"),
        ({}, "expected"),
        ({"path": "one", "digest": "short"}, "64 hexadecimal digits"),
        ({**ONE, "strengths": [1, 2]}, "name the eraser in erasers"),
        ({**ONE, "strenghts": [2]}, "'strenghts' is unknown, expected path, digest, strengths"),
        ({**BOTH, "defaults": "one"}, "'defaults' is unknown"),
        ({"erasers": {}, "default": "none"}, "at least one word"),
        ({"erasers": {"none": ONE}, "default": "none"}, "at least one word"),
        ({"erasers": {"a b": ONE}, "default": "none"}, "at least one word"),
        ({"erasers": {"one": ONE}, "default": "two"}, "default is 'two'"),
        ({"erasers": {"one": ONE}}, "default"),
        ({"erasers": {"one": {**ONE, "strengths": []}}, "default": "none"}, "at least one, and each once"),
        ({"erasers": {"one": {**ONE, "strengths": [1, 1]}}, "default": "none"}, "at least one, and each once"),
        ({"erasers": {"one": {**ONE, "strengths": [-1]}}, "default": "none"}, "strengths"),
    ],
)
def test_settings_of_another_form(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.read(values)


def test_a_digest_that_is_missing_is_told(folder: Path) -> None:
    with pytest.raises(ValueError, match=digest_of_folder(folder)):
        Settings.read({"path": str(folder)})


def test_erasers_that_were_exchanged_are_refused(folder: Path) -> None:
    entry = Settings.read({"path": str(folder), "digest": digest_of_folder(folder)}).erasers["erasers"]
    assert list(entry.load()) == ["norm"]
    eye = torch.eye(4)
    lf.Scrubber({"norm": lf.Eraser(eye[:, 1:2], eye[1:2])}).save_pretrained(folder)
    with pytest.raises(ValueError, match=f"have the digest {digest_of_folder(folder)}, expected"):
        entry.load()
    with pytest.raises(FileNotFoundError, match="scrubber.json"):
        digest_of_folder(folder.parent)


def test_the_environment_says_the_same_or_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    additional: dict[str, Any] = {"other": 1}
    assert Settings.of(additional) is None and Settings.of(None) is None
    monkeypatch.setenv(VARIABLE, json.dumps(ONE))
    assert Settings.of(additional) == Settings.read(ONE)
    assert additional == {"other": 1, "leace_fast": ONE}, "so that it counts in the keys of vLLM's caches"
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(ONE))
    monkeypatch.setenv(VARIABLE, str(file))
    assert Settings.of(additional) == Settings.read(ONE)
    monkeypatch.setenv(VARIABLE, json.dumps(BOTH))
    with pytest.raises(ValueError, match="say it in one place"):
        Settings.of(additional)
    monkeypatch.setenv(VARIABLE, "missing.json")
    with pytest.raises(ValueError, match="expected JSON or the file of it"):
        Settings.of({})
    monkeypatch.setenv(VARIABLE, "{")
    with pytest.raises(ValueError, match="holds no JSON"):
        Settings.of({})


def config(**changes: Any) -> SimpleNamespace:
    """A stand-in of vLLM's configuration."""
    parallel = {"pipeline_parallel_size": 1, "prefill_context_parallel_size": 1, "use_ubatching": False}
    passes, cache = {"enable_sp": False}, {"kv_sharing_fast_prefill": False}
    own: dict[str, Any] = {"use_v2_model_runner": False, "speculative_config": None}
    for part in (parallel, passes, cache, own):
        part.update({key: value for key, value in changes.items() if key in part})
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(**passes)),
        cache_config=SimpleNamespace(**cache),
        **own,
    )


def test_what_was_not_tested_is_refused_by_name() -> None:
    assert runner_of(config()) == "V1"
    for change, name in (
        ({"use_v2_model_runner": True}, "model runner V2"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"prefill_context_parallel_size": 2}, "prefill context parallelism"),
        ({"use_ubatching": True}, "microbatches"),
        ({"enable_sp": True}, "sequence parallelism"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"kv_sharing_fast_prefill": True}, "fast prefill"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*not tested with erasers"):
            runner_of(config(**change))
