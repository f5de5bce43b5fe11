"""vLLM's engine serves erased: as transformers does, by request, from the prefix cache, or it does not start."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import served

import leace_fast as lf

MOST = 1e-4  # between log-probabilities of vLLM and of transformers, both in float32
MODES = pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
WAYS: list[dict[str, Any]] = [
    {},
    {"leace_fast": "one"},
    {"leace_fast": "one", "leace_fast_strength": 0.5},
    {"leace_fast": "two"},
    {"leace_fast": "none"},
]


def scaled(scrubber: lf.Scrubber, strength: float) -> lf.Scrubber:
    return lf.Scrubber({site: eraser.scaled(strength) for site, eraser in scrubber.items()})


@pytest.fixture(scope="session")
def wanted(scrubbers: dict[str, lf.Scrubber]) -> list[lf.Scrubber | None]:
    """The erasers of each of `WAYS`."""
    return [None, scrubbers["one"], scaled(scrubbers["one"], 0.5), scrubbers["two"], None]


def answers(work: dict[str, Any], env: dict[str, str] | None = None) -> list[Any]:
    said = served.run(work, env)
    assert isinstance(said, list), said
    return said


@MODES
def test_every_request_erased(folder: Path, model: Any, scrubbers: dict[str, lf.Scrubber], eager: bool) -> None:
    ids = served.prompts(12)
    work = {"settings": served.entry(folder, "one"), "model": str(folder / "model"), "eager": eager}
    results = answers({**work, "batches": [[(each, None) for each in ids]]})
    one = scrubbers["one"]
    assert max(served.distance(model, one, each, result) for each, result in zip(ids, results, strict=True)) < MOST
    assert max(served.distance(model, None, each, result) for each, result in zip(ids, results, strict=True)) > 0.1


@pytest.mark.parametrize("add_bias", [False, True], ids=["folded", "with biases"])
@MODES
def test_folded(folder: Path, model: Any, scrubbers: dict[str, lf.Scrubber], eager: bool, add_bias: bool) -> None:
    model = copy.deepcopy(model)
    scrubbers["one"].fold_(model, add_bias=add_bias, max_cost_ratio=10.0, keep_originals=False)
    path = folder / f"folded-{add_bias}"
    if not path.exists():
        model.save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).write_bytes((folder / "model" / name).read_bytes())
    ids = served.prompts(12)
    results = answers({"model": str(path), "eager": eager, "batches": [[(each, None) for each in ids]]})
    assert max(served.distance(model, None, each, result) for each, result in zip(ids, results, strict=True)) < MOST


@MODES
def test_by_request_in_mixed_batches(folder: Path, model: Any, wanted: list[lf.Scrubber | None], eager: bool) -> None:
    """Un-erased rows have the bits that they have in a batch without any erased row, in an engine without erasers."""
    batches = []
    for number, size in enumerate((1, 8, 48, 1)):
        ids = served.prompts(size, seed=size + number)
        batches.append([(each, WAYS[(number + i) % len(WAYS)]) for i, each in enumerate(ids)])
    work = {"model": str(folder / "model"), "eager": eager}
    results = answers({**work, "settings": served.by_request(folder), "batches": batches})
    clean = answers({**work, "batches": [[(ids, None) for ids, _ in batch] for batch in batches]})
    asked = [row for batch in batches for row in batch]
    met = set()
    for (ids, choice), result, un_erased in zip(asked, results, clean, strict=True):
        way = WAYS.index(choice)
        assert served.distance(model, wanted[way], ids, result) < MOST, choice
        if wanted[way] is None:
            assert result == un_erased
        else:
            assert result != un_erased
        met.add(way)
    assert met == set(range(len(WAYS)))


@pytest.mark.parametrize("mutation", ["", "no salt"])
def test_the_prefix_cache_keeps_choices_apart(
    folder: Path, model: Any, wanted: list[lf.Scrubber | None], mutation: str
) -> None:
    """One long prompt in all ways, twice: what was cached of one way is not taken by another."""
    (ids,) = served.prompts(1, 300, 301)
    batches = [[(ids, way)] for way in WAYS * 2]
    work = {"settings": served.by_request(folder), "model": str(folder / "model"), "eager": True}
    results = answers({**work, "batches": batches, "mutation": mutation})
    worst = max(served.distance(model, wanted[i % len(WAYS)], ids, result) for i, result in enumerate(results))
    assert worst > 1e-2 if mutation else worst < MOST


def test_told_by_the_environment(folder: Path, model: Any, scrubbers: dict[str, lf.Scrubber]) -> None:
    """And with an engine and workers in processes of their own, as in a server."""
    import json

    (ids,) = served.prompts(1)
    work = {"model": str(folder / "model"), "eager": True, "batches": [[(ids, None)]]}
    told = json.dumps(served.entry(folder, "two"))
    (result,) = answers(work, {"LEACE_FAST_VLLM": told, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    assert served.distance(model, scrubbers["two"], ids, result) < MOST


def test_a_request_that_was_not_salted_is_not_served(folder: Path) -> None:
    work = {"settings": served.by_request(folder), "model": str(folder / "model"), "eager": True}
    said = served.run({**work, "batches": [[([1, 2, 3], {"leace_fast": "one"})]], "mutation": "no engine"})
    assert isinstance(said, str) and "came past the engine's door" in said


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another digest": ({"digest": "0" * 64}, "has the digest|have the digest"),
    "a graph without an eraser": (
        {"mutation": "no hook", "eager": False},
        "'model.layers.1.input_layernorm': its eraser ran 0 times",
    ),
    "a hook that is gone": ({"mutation": "no hook"}, "'model.layers.1.input_layernorm': its eraser ran 0 times"),
    "a worker without the plugin": (
        {"mutation": "no worker"},
        "a worker does not erase: the plugin is not active in it",
    ),
    "a version that was not tested": (
        {"mutation": "another version"},
        "vLLM 0.1.2 was not tested with erasers, expected 0.",
    ),
    "a site that is missing": (
        {"site": "model.layers.7.input_layernorm"},
        "has no 'model.layers.7.input_layernorm'; its norms are",
    ),
    "a site that is no norm": ({"site": "model.layers.1.mlp"}, "'model.layers.1.mlp' is a LlamaMLP"),
    "another width": ({"width": 32}, "'model.layers.1.input_layernorm' has width 64, its eraser 32"),
    "another model": ({"hidden_size": 65}, "fitted on another model than is served: hidden_size: 65 there, 64 here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_does_not_start(folder: Path, scrubbers: dict[str, lf.Scrubber], tmp_path: Path, case: str) -> None:
    import re

    import torch

    how, message = REFUSED[case]
    one = scrubbers["one"]
    erasers, config = dict(one), one.config
    if "site" in how:
        erasers[how["site"]] = next(iter(one.values()))
    if "width" in how:
        eye = torch.eye(how["width"])
        erasers["model.layers.1.input_layernorm"] = lf.Eraser(eye[:, :1], eye[:1])
    if "hidden_size" in how:
        config = {**config, "hidden_size": how["hidden_size"]}
    lf.Scrubber(erasers, one.model_id, one.revision, config).save_pretrained(tmp_path / "erasers")
    settings = {**served.entry(tmp_path, "erasers"), **{key: how[key] for key in ("digest",) if key in how}}
    work = {"settings": settings, "model": str(folder / "model"), "eager": how.get("eager", True), "batches": []}
    said = served.run({**work, "mutation": how.get("mutation", "")})
    assert isinstance(said, str) and re.search(message, said), said
