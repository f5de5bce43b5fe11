"""The demo: its corpus, its windows, a tiny run end to end, and what the shipped model must show."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_demo import write_assets
from transformers import AutoTokenizer

from leace_fast.demo import ASSETS, CATEGORIES, Module, batches_of, fits, load_demo, load_modules, run_demo
from leace_fast.demo import _run as run
from leace_fast.demo._corpus import is_held_out, is_test, label_characters, save_modules
from leace_fast.demo._language_model import middle, token_labels, train_tokenizer, windows
from leace_fast.demo.train import PIECE
from leace_fast.study import points


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


@pytest.mark.parametrize("tokens", [80, 200, 10_000])
def test_the_middle_is_whole_lines(assets, tokens):
    module = load_modules(assets / "held_out.jsonl.gz")[0]
    tokenizer = train_tokenizer([module.text], 300)
    part = middle(module, tokenizer, tokens)
    begin = module.text.index(part.text)
    assert part.labels == module.labels[begin : begin + len(part.text)]
    assert part.text.endswith("\n") and set(part.text.splitlines()) <= set(module.text.splitlines())
    count = len(tokenizer(part.text)["input_ids"])
    assert tokens / 3 < count <= tokens if tokens < 1000 else part == module


def test_a_middle_of_one_long_line_is_cut_between_tokens():
    tokenizer = train_tokenizer(["x = 1"], 300)
    text = "x = " + "1 + " * 500 + "1"
    part = middle(Module("long", text, label_characters(text)), tokenizer, 50)
    assert part.text and part.text in text and len(part.text) == len(part.labels)
    assert len(tokenizer(part.text)["input_ids"]) <= 51


def test_the_parts_share_no_module(assets):
    demo = load_demo(assets)
    names = {part: {module.name for module in modules} for part, modules in demo.modules.items()}
    assert names["fit"] | names["fresh"] == {f"module_{i}" for i in range(12)}
    assert names["library"] == {f"library_{i}" for i in range(8)}
    assert all(map(fits, names["fit"])) and not any(map(fits, names["fresh"]))
    groups = {
        part: {group for batch in getattr(demo, part) for group in batch["concept_groups"].tolist()}
        for part in ("fit", "many", "fresh")
    }
    assert groups["fit"] < groups["many"] and not groups["many"] & groups["fresh"]
    assert [len(groups[part]) for part in ("many", "fresh")] == [len(names["fit"]) + 8, len(names["fresh"])]


def test_the_groups_are_the_modules(assets):
    demo = load_demo(assets)
    numbers = {module.name: place for place, module in enumerate(demo.modules["fresh"])}
    tokenizer = AutoTokenizer.from_pretrained(assets / "model")
    for batch in batches_of(demo.modules["fresh"], tokenizer):
        for ids, mask, group in zip(
            *(batch[n] for n in ("input_ids", "attention_mask", "concept_groups")), strict=True
        ):
            text = tokenizer.decode(ids[mask.bool()][1:])
            (module,) = [each for each in demo.modules["fresh"] if numbers[each.name] == int(group)]
            assert text in module.text


def test_the_demo_from_end_to_end(assets):
    stages: list[str] = []

    def track(items, stage):
        stages.append(stage)
        return items

    study, facts = run_demo(assets, track=track, random_seeds=2)
    assert study.class_names == CATEGORIES and len(study.sites) == 4
    fit = len(facts["data"]["fit_modules"])
    assert study.variants == (f"{fit} modules", f"{fit + 8} modules", f"{fit + 8} modules, 5 contrasts")
    assert study.main == f"{fit + 8} modules"
    assert [study.sites[0].ranks[name] for name in study.variants] == [5, 5, 10]
    assert set(study.seconds) == {"load", "scrub", "passes", "probes", "random subspaces"}
    sites = [site.site for site in study.sites]
    scrubbing = 3 * ["read", "sites", *sites]
    assert [stage for stage in stages[: len(scrubbing)]] == scrubbing
    states = ("clean", *study.variants)
    measured = [stage for state in states for stage in (state, f"probes: {state}")]
    assert stages[len(scrubbing) :] == [*measured, "random subspaces 1", "random subspaces 2"]
    names = [set(facts["data"][f"{part}_modules"]) for part in ("fit", "library", "fresh")]
    assert names[0] | names[2] == {f"module_{i}" for i in range(12)} and len(names[1]) == 8
    loss = study.loss
    assert loss is not None and loss.text_bytes == facts["data"]["fresh_bytes"]
    # An untrained model is as good as a uniform guess.
    assert loss.clean == pytest.approx(math.log(320), rel=0.1)


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_processors_without_bfloat16_run_the_model_in_float32(assets, monkeypatch, multiplies, dtype):
    monkeypatch.setattr(run, "multiplies", lambda _: multiplies)
    assert load_demo(assets).model.dtype == dtype


@pytest.mark.parametrize("missing", ["held_out.jsonl.gz", "library.jsonl.gz", "model/config.json"])
def test_missing_assets_are_named(assets, tmp_path, missing):
    (tmp_path / "model").mkdir()
    for name in {"held_out.jsonl.gz", "library.jsonl.gz", "model/config.json"} - {missing}:
        (tmp_path / name).write_bytes((assets / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=missing):
        run_demo(tmp_path)


def test_the_shipped_library_is_one_window_of_each_module():
    library, held_out = load_modules(ASSETS / "library.jsonl.gz"), load_modules(ASSETS / "held_out.jsonl.gz")
    assert len(library) == len({module.name for module in library}) == 437
    assert not {module.name for module in library} & {module.name for module in held_out}
    assert all(len(module.labels) == len(module.text) for module in library)
    assert not any(is_held_out(module.name) or is_test(module.name) for module in library)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    counts = [len(ids) for ids in tokenizer([module.text for module in library])["input_ids"]]
    assert max(counts) <= PIECE + 2  # at the cut a word may fall into other tokens
    assert sum(count > PIECE / 2 for count in counts) > 350
    assert (ASSETS / "library.jsonl.gz").stat().st_size < 2**20


@pytest.fixture
def a_part_of_the_assets(tmp_path):
    """The shipped model with some of the shipped modules, of a middling size, to fit on and to measure on."""
    modules = [module for module in load_modules(ASSETS / "held_out.jsonl.gz") if 8_000 < len(module.text) < 16_000]
    modules = [module for side in (True, False) for module in [m for m in modules if fits(m.name) == side][:4]]
    assert len(modules) == 8
    (tmp_path / "model").symlink_to(ASSETS / "model")
    save_modules(modules, tmp_path / "held_out.jsonl.gz")
    save_modules(load_modules(ASSETS / "library.jsonl.gz")[::3], tmp_path / "library.jsonl.gz")
    return tmp_path


@pytest.mark.slow
def test_the_shipped_model_shows_what_is_claimed(a_part_of_the_assets):
    study, _ = run_demo(a_part_of_the_assets, random_seeds=2)
    few, many, contrasts = study.variants
    assert len(study.sites) == 10
    for site in study.sites:  # with two modules to train on, those of other modules tell little
        assert site.clean.same is not None
        assert site.clean.same.accuracy > site.constant + 0.1 and site.clean.same.nats > 0.5, site
    worst = {(name, kind): points(study, name, kind) for name in study.variants for kind in ("other", "same")}
    assert worst[few, "same"] > worst[many, "same"] > worst[contrasts, "same"], worst
    loss = study.loss
    assert loss is not None and len(loss.random) == 2
    assert loss.bits(loss.clean) <= 1.35  # windows without overlap: a little above the model card's figure
    assert loss.erased[contrasts] > loss.erased[many] > loss.clean and loss.random_rise_share(many) <= 0.1
