"""`leace-fast fit`: studies of models and texts, and of shards."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from command_line import run, texts
from safetensors.torch import save_file

from leace_fast import Eraser, Scrubber
from leace_fast.study import _models as models
from leace_fast.study import read_batches


def read(site: dict[str, Any]) -> tuple[float, float, float]:
    """The accuracy of a probe before and after erasure, and that of the best constant."""
    clean, erased = site["clean"]["other"], next(iter(site["erased"].values()))["other"]
    return clean["accuracy"], erased["accuracy"], erased["constant"]


@pytest.mark.parametrize("model", ["model", "encoder"])
def test_fit_a_model_on_texts(workplace, tmp_path, model):
    data = tmp_path / "data.jsonl"  # enough for probes that are trained on 15 % of it
    data.write_text("\n".join(map(json.dumps, texts(240))))
    arguments = ("--data", data, "--text", "body", "--label", "kind", "--out", tmp_path / "out")
    result = run("fit", workplace / model, *arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["class_names"] == ["fruit", "tool"]
    assert (report["loss"] is None) == (model == "encoder")
    assert (tmp_path / "out" / "loss.png").exists() == (model == "model")
    assert len(Scrubber.from_pretrained(tmp_path / "out" / "erasers")) == len(report["sites"]) > 0
    assert all(before > constant + 0.1 for before, _, constant in map(read, report["sites"])), report["sites"]


def test_fit_options_reach_the_study(workplace, tmp_path):
    arguments = ("--data", workplace / "data.jsonl", "--text", "body", "--label", "kind", "--out", tmp_path / "out")
    site = "model.layers.1.input_layernorm"
    result = run("fit", workplace / "model", *arguments, "--sites", site, "--max-tokens", 400, "--device", "cpu")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [found["site"] for found in report["sites"]] == [site]
    assert report["rows"]["fit"] <= 400


def test_the_dtype_that_a_model_runs_in(workplace, monkeypatch):
    source = str(workplace / "model")
    assert models.load_model(source, "cpu").dtype == torch.float32
    monkeypatch.setattr(models, "multiplies", lambda dtype: dtype == torch.float32)
    data: dict[str, Any] = {"text": "body", "label": "kind", "device": "cpu"}
    with pytest.warns(UserWarning, match="no products of bfloat16.*--dtype float32"):
        batches = read_batches(source, workplace / "data.jsonl", **data, dtype="bfloat16")
    assert batches.model.dtype == torch.bfloat16
    result = run("eval", source, "--data", workplace / "data.jsonl", "--text", "body", "--label", "kind")
    assert result.exit_code == 0 and "no products" not in result.output, result.output


@pytest.mark.parametrize(("source", "names"), [("acts.safetensors", ["0", "1"]), ("shards", ["no", "yes"])])
def test_fit_activation_shards(workplace, tmp_path, source, names):
    result = run("fit", workplace / source, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (site,) = report["sites"]
    assert report["class_names"] == names
    before, after, constant = read(site)
    assert before > 0.95 and abs(after - constant) < 0.05
    assert 1900 < report["rows"]["fit"] < 2300
    (eraser,) = Scrubber.from_pretrained(tmp_path / "out" / "erasers").values()
    assert isinstance(eraser, Eraser) and (eraser.dim, eraser.rank) == (8, 1)


def test_one_column_that_is_erased_wholly_is_not_read_from_what_rounding_leaves(tmp_path):
    y = torch.randint(3, (2000,), generator=torch.Generator().manual_seed(0))
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1)) + 3 * (y == 0)[:, None]
    save_file({"x": x, "y": y}, tmp_path / "x.safetensors")
    assert run("fit", tmp_path / "x.safetensors", "--out", tmp_path / "out").exit_code == 0
    (site,) = json.loads((tmp_path / "out" / "report.json").read_text())["sites"]
    before, after, constant = read(site)
    assert before > constant + 0.2 and after == constant


@pytest.mark.parametrize("method", ["inlp", "alf_qleace", "rlace", "median"])
def test_fit_shards_by_other_methods(workplace, tmp_path, method):
    """What needs class covariances, or passes over the rows, gets them from shards; held-out rows stay out."""
    result = run("fit", workplace / "acts.safetensors", "--method", method, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (site,) = report["sites"]
    before, after, constant = read(site)
    assert before > 0.95 and abs(after - constant) < 0.06
    (eraser,) = Scrubber.from_pretrained(tmp_path / "out" / "erasers").values()
    assert eraser.method == method and eraser.report is not None
    assert eraser.report.rows == report["rows"]["fit"]
