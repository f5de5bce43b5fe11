"""`--groups`, `--metric`, `--neutral` and `--contrasts`; what fresh probes say, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run, texts
from safetensors.torch import load_file, save_file

from leace_fast import Scrubber, leace, scrub
from leace_fast.cli._scrub import _expectations
from leace_fast.study import read_batches, study_shards

SITE = "model.layers.1.input_layernorm"


@pytest.fixture(scope="session")
def by_author(workplace) -> tuple[Any, ...]:
    """The model, and texts of both kinds by each of 20 authors."""
    rows = [{**row, "author": f"author {i // 2 % 20}"} for i, row in enumerate(texts(160))]
    (workplace / "by_author.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = [f"hammer pear {i} saw plum\n" for i in range(40)]
    (workplace / "ordinary.txt").write_text("".join(lines))
    (workplace / "ordinary.jsonl").write_text("".join(json.dumps({"body": line.rstrip()}) + "\n" for line in lines))
    data = workplace / "by_author.jsonl"
    return workplace / "model", "--data", data, "--text", "body", "--label", "kind", "--groups", "author"


def erasers_of(folder: Path) -> Any:
    return Scrubber.from_pretrained(folder)


def test_a_group_is_fitted_or_held_out_and_the_output_says_what_to_expect(by_author, tmp_path):
    result = run("scrub", *by_author, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    scrubber = erasers_of(tmp_path)
    assert all(eraser.report.groups == 14 for eraser in scrubber.values()), "70 % of 20 authors"
    assert result.stdout.count("expected on fresh rows: at most ") == 1
    assert result.stdout.count("expected on a fresh author, from 14 fitted, as good as ") == 1
    leaks = {site: eraser.report.expected_group_leak for site, eraser in scrubber.items()}
    worst = max(leaks, key=lambda site: leaks[site])
    assert f"at most {leaks[worst]:.2g} nats, at {worst}" in " ".join(result.stdout.split())
    found = run("eval", *by_author, "--erasers", tmp_path, "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert "half of the held-out groups (each author is one)" in report["note"] and "left out" not in report["note"]
    for probe in report["probes"].values():
        assert (probe["train_groups"], probe["test_groups"], probe["in_sample"]) == (3, 3, False)
        assert probe["nats_interval"] is None and probe["accuracy_interval"] is None and probe["leaks"] is False
    shown = run("eval", *by_author, "--erasers", tmp_path).stdout
    assert shown.count(" nats [too few groups to tell], 3 groups to train and 3 to test") == 4
    assert "fresh probes: trained on half of the held-out groups" in shown


def test_eval_refuses_texts_that_were_fitted_on_and_says_what_to_do(workplace, by_author, tmp_path):
    assert run("scrub", *by_author, "--out", tmp_path).exit_code == 0
    result = run("eval", *by_author[:-2], "--erasers", tmp_path)
    assert result.exit_code == 2 and not result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert "error: the erasers were fitted on " in line and "% of the tokens that are held out here" in line
    assert "Give the --data, --text, --label and --groups that scrub was given" in line
    share = int(line.split("% of the tokens")[0].rpartition(" ")[2])
    assert 50 < share < 90, "about as many as are fitted on of all"
    # texts that the erasers have not seen
    (workplace / "new.jsonl").write_text(
        "\n".join(json.dumps({**row, "body": f"and {row['body']}"}) for row in texts(60))
    )
    fresh = ("--data", workplace / "new.jsonl", "--text", "body", "--label", "kind", "--erasers", tmp_path)
    assert run("eval", workplace / "model", *fresh).exit_code == 0


def test_windows_that_two_texts_share_are_left_out_of_the_probes(workplace, tmp_path):
    """The same tokens in texts that differ: what of them is held out counts no more, and that is said."""
    rows = texts(120)
    rows += [{**row, "body": f"{row['body']}\n\n"} for row in rows[:4]]
    path = workplace / "alike.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    batches = read_batches(str(workplace / "encoder"), path, text="body", label="kind")
    sequences = [
        {
            tuple(ids[kept].tolist())
            for batch in part
            for ids, kept in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        }
        for part in (batches.fit, batches.held_out)
    ]
    shared = sum(len(ids) - 2 for ids in sequences[0] & sequences[1])  # without [CLS] and [SEP]
    common = ("--data", path, "--text", "body", "--label", "kind")
    assert run("scrub", workplace / "encoder", *common, "--out", tmp_path).exit_code == 0
    result = run("eval", workplace / "encoder", *common, "--erasers", tmp_path)
    assert result.exit_code == 0, result.output
    assert (f"; {shared} of " in result.stdout) == (shared > 0), (shared, result.stdout)


@pytest.mark.parametrize("neutral", ["ordinary.txt", "ordinary.jsonl"])
def test_metric_and_neutral_texts_are_those_of_the_python_api(workplace, by_author, tmp_path, neutral):
    options = ("--last-token", "--sites", SITE, "--metric", "labelled", "--neutral", workplace / neutral)
    result = run("scrub", *by_author, *options, "--out", tmp_path / "one")
    assert result.exit_code == 0, result.output
    reading = {"text": "body", "label": "kind", "groups": "author", "last_token": True}
    batches = read_batches(
        str(workplace / "model"), workplace / "by_author.jsonl", **reading, neutral=workplace / neutral
    )
    inputs, bare = (
        [{name: value for name, value in batch.items() if name != "labels"} for batch in part]
        for part in (batches.fit, batches.neutral)
    )
    assert sum(len(batch["input_ids"]) for batch in bare) == 40 and all(
        {*batch} == {"input_ids", "attention_mask"} for batch in bare
    )
    wanted = scrub(batches.model, inputs, sites=SITE, metric="labelled", neutral=bare)[SITE]
    got = erasers_of(tmp_path / "one")[SITE]
    assert torch.equal(got.left, wanted.left) and torch.equal(got.right, wanted.right)
    for others in ([], ["--neutral", workplace / neutral], ["--metric", "labelled"]):
        assert run("scrub", *by_author, *options[:3], *others, "--out", tmp_path / "two").exit_code == 0
        assert not torch.equal(erasers_of(tmp_path / "two")[SITE].right, got.right), others


def test_contrasts(by_author, tmp_path):
    result = run("scrub", *by_author, "--contrasts", 2, "--out", tmp_path / "two")
    assert result.exit_code == 0 and "contrasts: 2 to 2 a site" in result.stdout, result.output
    assert all(eraser.rank == 3 for eraser in erasers_of(tmp_path / "two").values())
    result = run("scrub", *by_author, "--contrasts", "auto", "--sites", SITE, "--out", tmp_path / "auto")
    assert result.exit_code == 0, result.output
    eraser = erasers_of(tmp_path / "auto")[SITE]
    assert eraser.report.contrasts == eraser.rank - 1 >= 1 and len(eraser.report.front) > 2
    assert run("scrub", *by_author, "--contrasts", 0, "--sites", SITE, "--out", tmp_path / "none").exit_code == 0
    assert erasers_of(tmp_path / "none")[SITE].rank == 1


def test_fit_takes_the_same_options(workplace, by_author, tmp_path):
    options = ("--sites", SITE, "--metric", "labelled", "--neutral", workplace / "ordinary.txt", "--contrasts", 1)
    assert run("scrub", *by_author, *options, "--out", tmp_path / "scrub").exit_code == 0
    result = run("fit", *by_author, *options, "--out", tmp_path / "fit")
    assert result.exit_code == 0, result.output
    one, two = erasers_of(tmp_path / "scrub")[SITE], erasers_of(tmp_path / "fit" / "erasers")[SITE]
    assert torch.equal(one.right, two.right) and two.rank == 2 and two.report.groups == 14


# ------------------------------------------------------------------ shards


@pytest.fixture(scope="session")
def grouped_shards(workplace) -> Path:
    """Rows of 30 speakers, who differ in how the classes differ."""
    generator = torch.Generator().manual_seed(0)
    y, groups = torch.randint(2, (6000,), generator=generator), torch.randint(30, (6000,), generator=generator)
    own = torch.randn(30, 8, generator=generator) * torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 2])
    x = torch.randn(6000, 8, generator=generator) + y[:, None] * (3 * torch.eye(8)[0] + own[groups])
    (workplace / "speakers").mkdir()
    for i in range(2):
        names = np.array([f"speaker {group}" for group in groups[i::2].tolist()])
        np.savez(workplace / "speakers" / f"{i}.npz", x=x[i::2].numpy(), y=y[i::2].numpy(), groups=names)
    save_file({"x": x, "y": y, "groups": groups}, workplace / "speakers.safetensors")
    return workplace / "speakers"


def test_shards_are_held_out_by_group(grouped_shards, tmp_path):
    result = run("fit", grouped_shards, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (eraser,) = erasers_of(tmp_path / "out" / "erasers").values()
    assert eraser.report.groups == 21 and 3800 < eraser.report.rows < 4600
    study = study_shards(grouped_shards)
    sizes = np.unique(
        np.concatenate([np.load(grouped_shards / f"{i}.npz")["groups"] for i in (0, 1)]), return_counts=True
    )
    assert study.rows["fit"] + study.rows["probe"] + study.rows["probe_test"] == 6000 == sizes[1].sum()


def test_contrasts_of_shards_leave_less_to_fresh_groups(grouped_shards, tmp_path):
    leaks = []
    for contrasts in ((), ("--contrasts", "1")):
        result = run("fit", grouped_shards, *contrasts, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        (eraser,) = erasers_of(tmp_path / "out" / "erasers").values()
        assert eraser.rank == 1 + bool(contrasts)
        leaks.append(eraser.report.expected_group_leak)
    assert leaks[1] < 0.6 * leaks[0], leaks


def test_rows_of_other_groups_are_no_part_of_the_fit(workplace, grouped_shards, tmp_path):
    """Wrong labels in the groups held out, and only there, change nothing of the eraser."""
    arrays = load_file(workplace / "speakers.safetensors")
    whole = study_shards(workplace / "speakers.safetensors").scrubbers["leace"]["activations"]
    from leace_fast.study._activations import FIT, _parts

    held_out = _parts([str(group) for group in range(30)])[arrays["groups"]] != FIT
    save_file({**arrays, "y": torch.where(held_out, 1 - arrays["y"], arrays["y"])}, tmp_path / "wrong.safetensors")
    other = study_shards(tmp_path / "wrong.safetensors").scrubbers["leace"]["activations"]
    assert held_out.any() and torch.equal(whole.right, other.right) and torch.equal(whole.left, other.left)


# ---------------------------------------------------------------- warnings


def test_what_each_site_says_is_said_once_and_in_one_line(workplace, by_author, tmp_path):
    result = run("scrub", *by_author, "--last-token", "--sites", "residual", "--sites", "norms", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(erasers_of(tmp_path)) == 6
    assert len(lines) == 1 and lines[0].startswith("warning: 112 rows are few for 16 columns"), lines
    few = ("--data", workplace / "data.jsonl", "--text", "body", "--label", "kind", "--out", tmp_path / "few")
    rows = [{**row, "author": i % 3} for i, row in enumerate(texts(60))]
    (workplace / "three.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("scrub", workplace / "model", "--data", workplace / "three.jsonl", *few[2:], "--groups", "author")
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("warning: the rows come from 2 groups"), lines


def test_warnings_are_shown_whole_on_demand(by_author, tmp_path, monkeypatch):
    monkeypatch.setenv("LEACE_FAST_DEBUG", "1")
    with pytest.warns(UserWarning, match="rows are few"):
        result = run("scrub", *by_author, "--last-token", "--sites", SITE, "--out", tmp_path)
    assert result.exit_code == 0 and "warning:" not in result.stderr


def test_a_class_of_one_group_alone_is_said_to_tell_nothing(by_author, tmp_path):
    x, y = torch.randn(60, 16), torch.arange(60) % 2
    from leace_fast import Moments

    eraser = leace(Moments(16, 2).update(x, y, groups=torch.where(y == 0, 0, torch.arange(60) % 5 + 1)))
    lines = list(_expectations(Scrubber({"here": eraser}), "author"))
    assert lines[1].startswith("expected on a fresh author, from 6 fitted, as good as ")
    assert lines[1].endswith("nothing can be said, as a class is of one alone")
    assert list(_expectations(Scrubber({"here": leace(Moments(16, 2).update(x, y))}), "text"))[1:] == []
