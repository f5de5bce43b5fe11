"""`leace-fast scrub` and `eval`."""

from __future__ import annotations

import json

import pytest
import torch
from command_line import run

from leace_fast import Scrubber, scrub
from leace_fast.study import read_batches


@pytest.mark.parametrize("model", ["model", "encoder"])
def test_scrub_and_eval(workplace, tmp_path, model):
    common = (workplace / model, "--data", workplace / "data.jsonl", "--text", "body", "--label", "kind")
    result = run("scrub", *common, "--out", tmp_path / "out", "--buffer", "64kB", "--checkpoint", tmp_path / "half")
    assert result.exit_code == 0, result.output
    scrubber = Scrubber.from_pretrained(tmp_path / "out")
    assert len(scrubber) == 4 and scrubber.config["hidden_size"] == 16
    assert len(list((tmp_path / "half").glob("*.safetensors"))) == 4
    clean = json.loads(run("eval", *common, "--json").stdout)
    erased = json.loads(run("eval", *common, "--erasers", tmp_path / "out", "--json").stdout)
    assert (clean["nats"] is None) == (model == "encoder") and (clean["nats"] is None or erased["kl"] > 0)
    assert clean["kl"] is None and clean["tokens"] == erased["tokens"]
    for site in scrubber:
        before, after = clean["probes"][site], erased["probes"][site]
        assert before["accuracy"] > after["accuracy"] + 0.1 and abs(after["accuracy"] - after["constant"]) < 0.1
    assert "best constant" in run("eval", *common, "--erasers", tmp_path / "out").stdout


def test_scrub_of_the_last_token(workplace, tmp_path):
    common = (workplace / "model", "--data", workplace / "data.jsonl", "--text", "body", "--label", "kind")
    result = run("scrub", *common, "--out", tmp_path, "--last-token", "--sites", "residual", "--mode", "parallel")
    assert result.exit_code == 0, result.output
    scrubber = Scrubber.from_pretrained(tmp_path)
    assert list(scrubber) == ["model.layers.0", "model.layers.1"]
    assert all(eraser.report.rows == 42 for eraser in scrubber.values() if eraser.report)  # 70 % of 60 texts


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_scrub_of_several_concepts_erases_each(workplace, two_concepts, tmp_path, mode):
    common = (workplace / "model", "--data", two_concepts, "--text", "body")
    sites = ("--sites", "model.layers.0.input_layernorm", "--mode", mode)
    both, one = ("--label", "kind", "--label", "size"), ("--label", "kind")
    for columns, out in ((both, tmp_path / "both"), (one, tmp_path / "one")):
        result = run("scrub", *common, *columns, *sites, "--out", out)
        assert result.exit_code == 0, result.output
    ((site, eraser),) = Scrubber.from_pretrained(tmp_path / "both").items()
    assert eraser.rank == 2 and eraser.report is not None
    assert eraser.report.concepts == ("concept 0: 1 direction", "concept 1: 1 direction")
    probes = {}
    for name in ("both", "one"):
        for column in ("kind", "size"):
            result = run("eval", *common, "--label", column, "--erasers", tmp_path / name, "--json")
            assert result.exit_code == 0, result.output
            probes[name, column] = json.loads(result.stdout)["probes"][site]
    gain = {key: probe["accuracy"] - probe["constant"] for key, probe in probes.items()}
    assert gain["one", "size"] > 0.1 > max(abs(gain["both", "kind"]), abs(gain["both", "size"])), gain


def test_the_union_is_that_of_the_python_api(workplace, two_concepts, tmp_path):
    columns = ["size", "kind"]
    batches = read_batches(str(workplace / "model"), two_concepts, text="body", label=columns)
    assert batches.class_names == {"size": ("big", "small"), "kind": ("fruit", "tool")}
    inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches.fit]
    assert all(list(batch["concept_labels"]) == columns for batch in inputs)
    site = "model.layers.0.input_layernorm"
    wanted = scrub(batches.model, inputs, sites=site)[site]
    arguments = (workplace / "model", "--data", two_concepts, "--text", "body", "--sites", site)
    assert run("scrub", *arguments, "--label", "size", "--label", "kind", "--out", tmp_path).exit_code == 0
    (got,) = Scrubber.from_pretrained(tmp_path).values()
    assert torch.equal(got.left, wanted.left) and torch.equal(got.right, wanted.right)


def test_erasers_of_another_model_are_refused(workplace, tmp_path):
    common = ("--data", workplace / "data.jsonl", "--text", "body", "--label", "kind")
    assert run("scrub", workplace / "model", *common, "--out", tmp_path).exit_code == 0
    result = run("eval", workplace / "encoder", *common, "--erasers", tmp_path)
    assert result.exit_code == 2 and "fitted on another model" in result.stderr
    assert "model_type: 'llama' there, 'bert' here" in result.stderr
