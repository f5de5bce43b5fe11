"""The study on tiny models whose tokens carry a concept that is known."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from tiny_models import build
from torch import Tensor

from leace_fast import Eraser
from leace_fast.evaluation import Probe, batch_nats, bits_per_byte, evaluate
from leace_fast.scrubbing import Scrubber, scrub
from leace_fast.study import (
    Loss,
    Reading,
    SiteResult,
    Study,
    points,
    probe_table,
    run_study,
    stage_line,
    variant_table,
    verdict,
    write_study,
)
from leace_fast.study import _plots as plots
from leace_fast.study._parts import HeldOut
from leace_fast.study._plots import short_names

NAMES = ("zero", "one", "two")


def batches(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Random tokens; the class of a token is its number modulo 3, and some tokens are padding."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 63, (8, 32), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 20:] = 0
        labels = (ids % 3).masked_fill(mask == 0, -100)
        scored = ids.masked_fill(mask == 0, -100)
        groups = torch.arange(8) + 4 * (len(made) // 2) + 100 * seed  # each of them in two to four sequences
        made.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "concept_labels": labels,
                "labels": scored,
                "concept_groups": groups,
            }
        )
    return made


FIT, HELD_OUT = batches(16, 0), batches(6, 1)


@pytest.fixture(scope="module")
def model():
    return build("llama", torch.float32)


@pytest.fixture(scope="module")
def variants(model) -> dict[str, Scrubber]:
    few = [{name: value[:2] for name, value in batch.items()} for batch in FIT[:2]]
    return {"few": scrub(model, few), "many": scrub(model, FIT), "in one pass": scrub(model, FIT, mode="parallel")}


OPTIONS = {"class_names": NAMES, "text_bytes": 5000, "main": "many", "random_seeds": 2, "same_groups": True}


@pytest.fixture(scope="module")
def study(model, variants) -> Study:
    return run_study(model, variants, HELD_OUT, **OPTIONS)


def test_fresh_probes_see_what_few_rows_leave(study):
    assert study.variants == ("few", "many", "in one pass") and study.main == "many"
    for site in study.sites:
        assert site.ranks == {"few": 2, "many": 2, "in one pass": 2}
        for kind in ("other", "same"):
            clean, few, many = (getattr(each, kind) for each in (site.clean, site.erased["few"], site.erased["many"]))
            assert clean.accuracy > clean.constant + 0.2 and clean.leaks
            assert abs(many.accuracy - many.constant) < 0.08 and many.nats < 0.02
            assert few.nats > many.nats + 0.015
    # Nothing comes before the first site: both ways of scrubbing are one there, and behind it they are not.
    assert study.sites[0].erased["in one pass"] == study.sites[0].erased["many"]
    assert any(site.erased["in one pass"] != site.erased["many"] for site in study.sites[1:])
    assert points(study, "few") > points(study, "many")


def test_probes_are_trained_and_tested_on_rows_that_no_eraser_saw(study):
    labelled = [sum(int((b["concept_labels"] != -100).sum()) for b in part) for part in (FIT, HELD_OUT)]
    assert study.rows["fit"] == labelled[0] and study.rows["held_out"] == labelled[1]
    assert study.rows["probe"] + study.rows["probe_test"] == labelled[1]
    for site in study.sites:
        for reading in (site.clean, *site.erased.values()):
            assert (reading.other.train_groups, reading.other.test_groups) == (8, 8)
            assert reading.same is not None and not reading.other.in_sample


def test_cells_are_the_groups_of_each_sequence():
    batch = {
        "concept_labels": torch.tensor([[0, 1, -100], [1, 0, 1], [1, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]),
        "concept_groups": torch.tensor([[5, 5, 6], [5, 7, 7], [7, 7, 7]]),
    }
    parts = HeldOut([batch, batch], same=True)
    assert parts.cells[0].tolist() == [[0, 0, 1], [2, 3, 3], [4, 4, 4]]
    assert parts.cells[1].tolist() == [[5, 5, 6], [7, 8, 8], [9, 9, 9]]
    assert parts.group.tolist() == [5, 6, 5, 7, 7] * 2
    assert parts.turn.tolist() == [0, 0, 1, 0, 1, 0, 0, 1, 0, 1]  # group 6 has no label
    assert parts.train.tolist() == [7]  # 10 rows; group 5 has 6
    # Group 5 trains with 0, 1, 0, 1 and is tested with 1, 1; group 7 with 0, 1, 1, 1 and 1, 1, 1 ... : both answer 1.
    assert parts.counts.sum(1).tolist() == [2, 0, 1, 1, 3] * 2
    assert parts.group_gain == 0
    swapped = HeldOut([batch, batch], same=True, swap=True)
    assert swapped.train.tolist() == [5] and swapped.turn[[0, 2, 3, 4]].tolist() == [1, 0, 1, 0]


def test_what_telling_the_group_gains():
    rows = {"attention_mask": torch.ones(2, 4, dtype=torch.int64), "concept_groups": torch.tensor([3, 4])}
    train = {"concept_labels": torch.tensor([[0, 0, 0, 1], [1, 1, 0, 0]]), **rows}
    test = {"concept_labels": torch.tensor([[0, 0, 1, 0], [1, 1, 1, 1]]), **rows}
    parts = HeldOut([train, test], same=True)
    assert parts.group_gain == 0  # of 0 and 1 alike the first is taken: group 4 answers 0, as all do
    train["concept_labels"][1, 3] = 1
    assert HeldOut([train, test], same=True).group_gain == pytest.approx((3 + 4) / 8 - 3 / 8)


def test_sequences_without_groups_are_groups():
    bare = [{name: value for name, value in batch.items() if name != "concept_groups"} for batch in HELD_OUT]
    parts = HeldOut(bare)
    assert parts.group.tolist() == list(range(48)) and len(parts.train) == 24


def test_loss_is_that_of_the_model_and_of_the_erased_model(model, variants, study):
    loss = study.loss
    assert loss is not None and len(loss.random) == 2 and loss.tokens == 6 * (8 * 31 - 12)
    clean = sum(batch_nats(model, batch) for batch in HELD_OUT)
    assert loss.clean * loss.tokens == pytest.approx(clean, rel=1e-9)
    for name, scrubber in variants.items():
        with scrubber.attached(model):
            erased = sum(batch_nats(model, batch) for batch in HELD_OUT)
        assert loss.erased[name] * loss.tokens == pytest.approx(erased, rel=1e-9)
    assert len({loss.clean, *loss.erased.values(), *loss.random}) == 6
    assert loss.bits(loss.clean) == pytest.approx(bits_per_byte(clean, 5000))
    assert loss.rise(loss.clean) == 0


def test_the_losses_are_those_of_evaluate(model, variants, study):
    clean, erased = evaluate(model, HELD_OUT), evaluate(model, HELD_OUT, variants["many"])
    assert (study.loss.clean, study.loss.erased["many"]) == pytest.approx((clean.nats, erased.nats), rel=1e-9)
    assert study.loss.tokens == clean.tokens == erased.tokens


def test_batch_nats_is_cross_entropy(model):
    batch = HELD_OUT[0]
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2).double(), targets, reduction="sum")
    assert batch_nats(model, batch) == pytest.approx(float(expected), rel=1e-5)


def test_a_study_repeats_itself_and_changes_nothing(model, variants, study):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = run_study(model, variants, HELD_OUT, **OPTIONS)
    assert again.sites == study.sites and again.loss == study.loss
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_probe_rows_are_a_sample(model, variants):
    study = run_study(model, {"many": variants["many"]}, HELD_OUT, class_names=NAMES, probe_rows=300)
    assert study.loss is None and study.rows["probe"] + study.rows["probe_test"] == 600
    assert study.sites[0].clean.same is None and math.isnan(points(study, "many", "same"))


def test_sequences_that_were_fitted_are_not_probed(model, variants):
    study = run_study(model, {"many": variants["many"]}, [*HELD_OUT, FIT[0]], class_names=NAMES)
    assert study.rows["held_out"] == sum(int((b["concept_labels"] != -100).sum()) for b in HELD_OUT)
    with pytest.raises(ValueError, match="no token of the held_out"):
        run_study(model, {"many": variants["many"]}, FIT, class_names=NAMES)


def test_encoders_have_no_loss():
    encoder = build("bert", torch.float32)
    study = run_study(encoder, {"erased": scrub(encoder, FIT)}, HELD_OUT, class_names=NAMES)
    assert study.loss is None and all(abs(points(study, "erased")) < 8 for site in study.sites)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": []}, "got no held-out batches"),
        ({"held_out": [{**HELD_OUT[0], "concept_labels": torch.full((8, 32), -100)}]}, "no token of the held_out"),
        ({"held_out": [{**HELD_OUT[0], "concept_groups": torch.zeros(8, dtype=torch.int64)}]}, "1 held-out groups"),
        ({"held_out": HELD_OUT[:1], "same_groups": True}, "no held-out group has two labelled sequences"),
        ({"variants": {}}, "the variants are none"),
        ({"main": "nope"}, "main is 'nope'"),
    ],
)
def test_bad_input(model, variants, change, message):
    arguments = {"variants": variants, "held_out": HELD_OUT, "class_names": NAMES, **change}
    with pytest.raises(ValueError, match=message):
        run_study(model, **arguments)


def test_variants_of_other_sites_are_refused(model, variants):
    site = next(iter(variants["many"]))
    mixed = {"many": variants["many"], "one": Scrubber({site: variants["many"][site]})}
    with pytest.raises(ValueError, match="'many' and 'one' have other sites"):
        run_study(model, mixed, HELD_OUT, class_names=NAMES)


def test_the_folder_holds_what_was_found(tmp_path, study):
    paths = write_study(study, tmp_path / "new" / "out", {"source": "tiny"}, "the remainder")
    assert all(path.exists() for path in paths)
    report = json.loads((tmp_path / "new" / "out" / "report.json").read_text())
    assert report["source"] == "tiny" and report["class_names"] == list(NAMES) and report["main"] == "many"
    for got, site in zip(report["sites"], study.sites, strict=True):
        assert got["erased"]["few"]["other"]["accuracy"] == site.erased["few"].other.accuracy
        assert got["clean"]["same"]["nats_interval"] == list(site.clean.same.nats_interval)
    assert report["loss"]["bits_per_byte"]["clean"] == study.loss.bits(study.loss.clean)
    assert set(report["seconds"]) == {"passes", "probes", "random subspaces"}
    assert report["fitted"]["many"]["rows"] == study.rows["fit"] and report["fitted"]["many"]["groups"] == 36
    loaded = Scrubber.from_pretrained(tmp_path / "new" / "out" / "erasers")
    x = torch.randn(5, 16)
    assert all(torch.equal(loaded[name](x), eraser(x)) for name, eraser in study.scrubbers["many"].items())
    for name in ("probe_accuracy.png", "loss.png"):
        data = (tmp_path / "new" / "out" / name).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 10_000


def probe(accuracy: float, nats: float = 0.0, constant: float = 0.4, groups: int = 8) -> Probe:
    around = (nats - 0.01, nats + 0.01) if groups > 5 else (-math.inf, math.inf)
    return Probe(accuracy, constant, nats, (accuracy - 0.1, accuracy + 0.1), around, 900, 1000, 7, groups)


def made_study(after: float, random: float, groups: int = 8) -> Study:
    readings = {"a": Reading(probe(after, 0.05, groups=groups), probe(0.5)), "b": Reading(probe(0.41), probe(0.42))}
    scrubber = Scrubber({"site": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])})
    clean, missing = Reading(probe(0.9, 1.0), probe(0.95, 1.1)), {"a": ("class 2: one row",)}
    sites = (SiteResult("site", 4, clean, readings, {"a": 1, "b": 1}, missing),)
    loss = Loss(1.0, {"a": 2.0, "b": 1.9}, (random,), 10, 20)
    seconds = {"record": 1.0, "probes": 2.0}
    return Study(sites, loss, NAMES, {}, seconds, {"a": scrubber, "b": scrubber}, main="a", group="module")


def test_the_verdict_says_what_was_measured_and_on_which_rows():
    fresh, a, b, theorem, random, missing = verdict(made_study(0.45, 1.05))
    assert "no eraser was fitted on their modules" in fresh
    assert "trained on 7 modules (900 rows) and tested on 8 others (1,000 rows)" in fresh
    assert a.startswith("a: probes are at most 5.0 points above") and "trained on at most 10.0" in a
    assert "for sure at 1 of 1 sites" in a and "for sure at 0 of 1 sites" in b
    assert "that is the theorem" in theorem and "says nothing of fresh rows" in theorem
    assert "5.0% of the rise in loss of a (expected at most 10%)" in random
    assert missing == "Not erased at site, a: class 2: one row"
    assert "50.0% of the rise in loss of a (expected at most 10%: NOT met)" in verdict(made_study(0.45, 1.5))[4]
    assert stage_line(made_study(0.4, 1.0)) == "record 1.0 s, probes 2.0 s; 3 s in all"


def test_an_interval_of_which_nothing_can_be_said_is_null():
    study = made_study(0.45, 1.05, groups=3)
    report = study.to_dict()["sites"][0]["erased"]
    assert report["a"]["other"]["nats_interval"] is None and report["b"]["other"]["nats_interval"] is not None
    assert "for sure at 0 of 1 sites" in verdict(study)[1]
    json.dumps(study.to_dict(), allow_nan=False)


def test_tables_have_a_row_for_each_site_and_condition():
    study = made_study(0.45, 1.1)
    assert probe_table(study).row_count == 1 and variant_table(study).row_count == 4
    assert [str(column.header) for column in probe_table(study).columns] == ["site", "constant", "clean", "a", "b"]
    bare = dataclasses.replace(study, loss=None)
    assert variant_table(bare).row_count == 2
    assert [str(column.header) for column in variant_table(bare).columns][3:] == [
        *("other modules", "the same modules", "nats")
    ]


def test_one_place_is_drawn_as_bars(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    plots.plot_probes(made_study(0.45, 1.1), tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["best constant", "b", "a", "clean"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([40, 42, 50, 95])


def test_no_rise_is_not_minus_zero(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    study = made_study(0.45, 1.1)
    loss = Loss(1.0, {"a": 0.99999, "b": 1.3}, (1.1, 1.2), 100, 100)
    plots.plot_loss(dataclasses.replace(study, loss=loss), tmp_path / "a.png")
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    assert sum("+0.000" in text for text in texts) == 1 and not any("-" in text for text in texts)


def test_short_names():
    assert short_names(["a.b.0.x", "a.b.1.x"]) == ["0.x", "1.x"]
    assert short_names(["only"]) == ["only"]
