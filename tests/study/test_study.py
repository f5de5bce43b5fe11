"""The study on tiny models whose tokens carry a concept that is known."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tiny_models import build
from torch import Tensor

from leace_fast.evaluation import batch_nats, bits_per_byte, evaluate
from leace_fast.scrubbing import Scrubber, scrub
from leace_fast.study import (
    Loss,
    SiteResult,
    Study,
    loss_table,
    probe_table,
    run_study,
    stage_line,
    verdict,
    write_study,
)
from leace_fast.study import _plots as plots
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
        made.append({"input_ids": ids, "attention_mask": mask, "concept_labels": labels, "labels": scored})
    return made


FIT, HELD_OUT = batches(16, 0), batches(6, 1)


@pytest.fixture(scope="module")
def model():
    return build("llama", torch.float32)


@pytest.fixture(scope="module")
def study(model) -> Study:
    return run_study(model, FIT, HELD_OUT, class_names=NAMES, text_bytes=5000, random_seeds=2)


def test_the_probe_falls_to_the_constant_at_each_site(study):
    assert [site.rank for site in study.sites] == [2] * 4
    for site in study.sites:
        assert site.before > site.constant + 0.2
        assert abs(site.after - site.constant) < 0.05
    # Nothing comes before the first site: both ways of scrubbing are one there, and behind it they are not.
    assert study.sites[0].one_pass == study.sites[0].after
    assert any(site.one_pass != site.after for site in study.sites[1:])


def test_all_labelled_rows_are_used(study):
    labelled = [sum(int((b["concept_labels"] != -100).sum()) for b in part) for part in (FIT, HELD_OUT)]
    assert study.rows == {"fit": labelled[0], "held_out": labelled[1], "probe": labelled[0], "probe_test": labelled[1]}
    assert all(eraser.report.rows == labelled[0] for eraser in study.erasers.values() if eraser.report)


def test_loss_is_that_of_the_model_and_of_the_erased_model(model, study):
    loss = study.loss
    assert loss is not None and len(loss.random) == 2 and loss.tokens == 6 * (8 * 31 - 12)
    clean = sum(batch_nats(model, batch) for batch in HELD_OUT)
    with Scrubber(study.erasers).attached(model):
        erased = sum(batch_nats(model, batch) for batch in HELD_OUT)
    assert loss.clean * loss.tokens == pytest.approx(clean, rel=1e-9)
    assert loss.erased * loss.tokens == pytest.approx(erased, rel=1e-9)
    assert len({loss.clean, loss.erased, loss.one_pass, *loss.random}) == 5
    with scrub(model, FIT, mode="parallel").attached(model):
        one_pass = sum(batch_nats(model, batch) for batch in HELD_OUT)
    assert loss.one_pass * loss.tokens == pytest.approx(one_pass, rel=1e-9)
    assert loss.bits(loss.clean) == pytest.approx(bits_per_byte(clean, 5000))


def test_the_losses_are_those_of_evaluate(model, study):
    clean, erased = evaluate(model, HELD_OUT), evaluate(model, HELD_OUT, Scrubber(study.erasers))
    assert (study.loss.clean, study.loss.erased) == pytest.approx((clean.nats, erased.nats), rel=1e-9)
    assert study.loss.tokens == clean.tokens == erased.tokens


def test_batch_nats_is_cross_entropy(model):
    batch = HELD_OUT[0]
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2).double(), targets, reduction="sum")
    assert batch_nats(model, batch) == pytest.approx(float(expected), rel=1e-5)


def test_a_study_repeats_itself_and_changes_nothing(model, study):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = run_study(model, FIT, HELD_OUT, class_names=NAMES, text_bytes=5000, random_seeds=2)
    assert again.sites == study.sites and again.loss == study.loss
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_probe_rows_are_a_sample(model):
    study = run_study(model, FIT, HELD_OUT, class_names=NAMES, probe_rows=500, sites="model.layers.1.input_layernorm")
    assert study.loss is None and len(study.sites) == 1
    assert 400 < study.rows["probe"] < 600 and study.rows["fit"] > 3000


def test_encoders_have_no_loss():
    study = run_study(build("bert", torch.float32), FIT, HELD_OUT, class_names=NAMES)
    assert study.loss is None and all(abs(site.after - site.constant) < 0.05 for site in study.sites)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "nope"}, "unknown method 'nope', expected one of leace"),
        ({"fit": []}, "got 0 batches to fit on"),
        ({"held_out": [{**FIT[0], "concept_labels": torch.full((8, 32), -100)}]}, "no token of the held_out"),
        ({"sites": "model.layers.9.input_layernorm"}, "no site"),
    ],
)
def test_bad_input(model, change, message):
    arguments = {"fit": FIT, "held_out": HELD_OUT, "class_names": NAMES, **change}
    with pytest.raises(ValueError, match=message):
        run_study(model, arguments.pop("fit"), arguments.pop("held_out"), **arguments)


def test_the_folder_holds_what_was_found(tmp_path, study):
    paths = write_study(study, tmp_path / "new" / "out", {"source": "tiny"}, "the remainder")
    assert all(path.exists() for path in paths)
    report = json.loads((tmp_path / "new" / "out" / "report.json").read_text())
    assert report["source"] == "tiny" and report["class_names"] == list(NAMES)
    assert [site["after"] for site in report["sites"]] == [site.after for site in study.sites]
    assert report["loss"]["bits_per_byte"]["clean"] == study.loss.bits(study.loss.clean)
    assert set(report["seconds"]) == {"scrub", "scrub in one pass", "loss", "activations", "probe"}
    loaded = Scrubber.from_pretrained(tmp_path / "new" / "out" / "erasers")
    x = torch.randn(5, 16)
    assert all(torch.equal(loaded[name](x), eraser(x)) for name, eraser in study.erasers.items())
    for name in ("probe_accuracy.png", "loss.png"):
        data = (tmp_path / "new" / "out" / name).read_bytes()
        assert data.startswith(b"\x89PNG") and len(data) > 10_000


def made_study(after: float, random: float) -> Study:
    sites = (SiteResult("a", 4, 2, 0.9, after, 0.4, 0.5, ("class 2: one row",)),)
    return Study(sites, Loss(1.0, 2.0, 1.9, (random,), 10, 20), NAMES, {}, {"record": 1.0, "probe": 2.0}, {})


def test_the_verdict_says_what_failed():
    good, bad = verdict(made_study(0.405, 1.05)), verdict(made_study(0.42, 1.5))
    assert "at 1 of 1 sites" in good[0] and "5.0% of the concept's rise in loss (expected at most 10%)" in good[2]
    assert "at 0 of 1 sites" in bad[0] and "50.0% of the concept's rise in loss (expected at most 10%: NOT" in bad[2]
    assert good[3] == "Not erased at a: class 2: one row"
    assert stage_line(made_study(0.4, 1.0)) == "record 1.0 s, probe 2.0 s; 3 s in all"


def test_few_rows_are_said():
    study = dataclasses.replace(made_study(0.4, 1.05), rows={"probe_test": 100})
    assert verdict(study)[1] == "Only 100 held-out rows were tested: each accuracy is uncertain by 5.0 points."


def test_tables_have_a_row_for_each_site_and_condition():
    study = made_study(0.4, 1.1)
    assert study.loss
    assert probe_table(study).row_count == 1
    assert loss_table(study.loss).row_count == 4


def test_one_place_without_a_second_way_has_no_empty_column_nor_a_line_of_one_point(tmp_path, monkeypatch):
    site = SiteResult("activations", 8, 2, 0.9, 0.4, 0.4, None)
    study = Study((site,), None, NAMES, {}, {}, {})
    assert [str(column.header) for column in probe_table(study).columns][-1] == "constant"
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    plots.plot_probes([site], tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["best constant", "erased", "before"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([40, 40, 90])


def test_no_rise_is_not_minus_zero(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    plots.plot_loss(Loss(1.0, 0.99999, 1.3, (1.1, 1.2), 100, 100), tmp_path / "a.png")
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    assert sum("+0.000" in text for text in texts) == 1 and not any("-" in text for text in texts)


def test_short_names():
    assert short_names(["a.b.0.x", "a.b.1.x"]) == ["0.x", "1.x"]
    assert short_names(["only"]) == ["only"]
