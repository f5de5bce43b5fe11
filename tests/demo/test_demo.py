"""The demo: its corpus, its windows, a tiny run end to end, and what the shipped model must show."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_demo import write_assets

from leace_fast.demo import ASSETS, CATEGORIES, fits, load_demo, load_modules, run_demo
from leace_fast.demo import _run as run
from leace_fast.demo._corpus import is_held_out, is_test, label_characters, save_modules
from leace_fast.demo._language_model import token_labels, train_tokenizer, windows


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return write_assets(tmp_path_factory.mktemp("assets"))


def test_modules_round_trip_with_their_labels(assets):
    modules = load_modules(assets / "held_out.jsonl.gz")
    assert [module.name for module in modules] == [f"module_{i}" for i in range(12)]
    assert all(len(module.labels) == len(module.text) for module in modules)
    assert modules[0].labels == label_characters(modules[0].text)


def test_a_token_of_several_categories_has_none():
    assert token_labels("kk.nn(", [(0, 2), (2, 5), (1, 5), (2, 3)]) == [0, 1, -100, -100]


@pytest.mark.parametrize(("length", "stride"), [(64, None), (64, 32), (2, 1), (4096, None)])
def test_windows_score_each_token_once(assets, length, stride):
    module = load_modules(assets / "held_out.jsonl.gz")[0]
    tokenizer = train_tokenizer([module.text], 300)
    pieces = list(windows(module, tokenizer, length, stride))
    scored = torch.cat([piece.input_ids[-piece.scored :] for piece in pieces])
    assert scored.tolist() == tokenizer(module.text, add_special_tokens=False)["input_ids"]
    assert all(1 < len(piece.input_ids) <= length and piece.scored < len(piece.input_ids) for piece in pieces)


def test_tests_and_module_belong_together():
    assert is_test("test.test_json") and not is_test("json.decoder")
    assert is_held_out("test.test_queue") == is_held_out("queue")


def test_the_demo_from_end_to_end(assets):
    stages: list[str] = []

    def track(items, stage):
        stages.append(stage)
        return items

    study, facts = run_demo(assets, track=track, random_seeds=2)
    assert study.class_names == CATEGORIES and len(study.sites) == 4
    assert set(study.seconds) == {"load", "scrub", "scrub in one pass", "loss", "activations", "probe"}
    sites = [site.site for site in study.sites]
    assert stages[: 2 + len(sites)] == ["read", "sites", *sites]
    assert stages[2 + len(sites) :] == [
        *("parallel", "fit", "clean", "scrubbed", "in one pass", "random subspaces 1", "random subspaces 2"),
        *("clean activations", "scrubbed activations", "activations, one pass", "probe"),
    ]
    names = set(facts["data"]["fit_modules"]) | set(facts["data"]["held_out_modules"])
    assert names == {f"module_{i}" for i in range(12)}
    assert all(fits(name) for name in facts["data"]["fit_modules"])
    assert not any(fits(name) for name in facts["data"]["held_out_modules"])
    loss = study.loss
    assert loss is not None and loss.text_bytes == facts["data"]["held_out_bytes"]
    # An untrained model is as good as a uniform guess.
    assert loss.clean == pytest.approx(math.log(320), rel=0.1)


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_processors_without_bfloat16_run_the_model_in_float32(assets, monkeypatch, multiplies, dtype):
    monkeypatch.setattr(run, "multiplies", lambda _: multiplies)
    assert load_demo(assets)[0].dtype == dtype


@pytest.mark.parametrize("missing", ["held_out.jsonl.gz", "model/config.json"])
def test_missing_assets_are_named(assets, tmp_path, missing):
    (tmp_path / "model").mkdir()
    for name in {"held_out.jsonl.gz", "model/config.json"} - {missing}:
        (tmp_path / name).write_bytes((assets / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=missing):
        run_demo(tmp_path)


@pytest.fixture
def a_part_of_the_assets(tmp_path):
    """The shipped model with some of the shipped modules, of a middling size, to fit on and to measure on."""
    modules = [module for module in load_modules(ASSETS / "held_out.jsonl.gz") if 8_000 < len(module.text) < 16_000]
    modules = [module for side in (True, False) for module in [m for m in modules if fits(m.name) == side][:4]]
    assert len(modules) == 8
    (tmp_path / "model").symlink_to(ASSETS / "model")
    save_modules(modules, tmp_path / "held_out.jsonl.gz")
    return tmp_path


@pytest.mark.slow
def test_the_shipped_model_shows_what_is_claimed(a_part_of_the_assets):
    study, _ = run_demo(a_part_of_the_assets, random_seeds=2)
    assert len(study.sites) == 10
    for site in study.sites:
        assert abs(site.after - site.constant) <= 0.01, site
        assert site.before > site.constant + 0.1, site
    assert study.sites[0].one_pass == study.sites[0].after
    for site in study.sites[1:]:
        assert site.one_pass is not None and site.one_pass > site.constant + 0.1, site
    loss = study.loss
    assert loss is not None and len(loss.random) == 2
    assert loss.bits(loss.clean) <= 1.35  # windows without overlap: a little above the model card's figure
    assert loss.erased > loss.one_pass > loss.clean and loss.random_rise_share <= 0.1
