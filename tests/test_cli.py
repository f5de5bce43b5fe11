"""The command line as a new user meets it: what works, and what mistakes say."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import build
from typer.testing import CliRunner

from leace_fast import Eraser
from leace_fast.cli import app
from leace_fast.demo._language_model import train_tokenizer
from leace_fast.scrubbing import Scrubber
from leace_fast.study import _models as models
from leace_fast.study import read_batches

WORDS = {"fruit": "apple pear plum cherry quince", "tool": "hammer saw chisel pliers drill"}
RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def texts(count: int) -> list[dict[str, str]]:
    rows = []
    for i in range(count):
        kind = ("fruit", "tool")[i % 2]
        words = WORDS[kind].split()
        rows.append({"body": " ".join(words[(i + j * (1 + i // 2)) % 5] for j in range(9)) + f" {i}", "kind": kind})
    return rows


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, texts(60))))
    tokenizer = train_tokenizer([row["body"] for row in texts(60)], 400)
    for name, architecture in (("model", "llama"), ("encoder", "bert")):
        model = build(architecture, torch.float32)
        model.resize_token_embeddings(len(tokenizer))
        # New rows all start at the mean of the old ones: no model could tell their words apart.
        torch.nn.init.normal_(model.get_input_embeddings().weight, generator=torch.Generator().manual_seed(0))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (3000,), generator=generator)
    x = torch.randn(3000, 8, generator=generator) + 3 * y[:, None]
    save_file({"x": x, "y": y}, folder / "acts.safetensors")
    (folder / "shards").mkdir()
    for i in range(2):
        np.savez(folder / "shards" / f"{i}.npz", x=x[i::2].numpy(), y=np.array(["no", "yes"])[y[i::2].numpy()])
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("model", ["model", "encoder"])
def test_fit_a_model_on_texts(workplace, tmp_path, model):
    arguments = ("--data", workplace / "data.jsonl", "--text", "body", "--label", "kind", "--out", tmp_path / "out")
    result = run("fit", workplace / model, *arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["class_names"] == ["fruit", "tool"]
    assert (report["loss"] is None) == (model == "encoder")
    assert (tmp_path / "out" / "loss.png").exists() == (model == "model")
    assert len(Scrubber.from_pretrained(tmp_path / "out" / "erasers")) == len(report["sites"]) > 0
    assert all(site["before"] > site["constant"] + 0.1 for site in report["sites"]), report["sites"]


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
    result = run("eval", "--model", source, "--data", workplace / "data.jsonl", "--text", "body", "--label", "kind")
    assert result.exit_code == 0 and "no products" not in result.output, result.output


@pytest.mark.parametrize(("source", "names"), [("acts.safetensors", ["0", "1"]), ("shards", ["no", "yes"])])
def test_fit_activation_shards(workplace, tmp_path, source, names):
    result = run("fit", workplace / source, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (site,) = report["sites"]
    assert report["class_names"] == names
    assert site["before"] > 0.95 and abs(site["after"] - site["constant"]) < 0.05
    assert 1900 < report["rows"]["fit"] < 2300
    (eraser,) = Scrubber.from_pretrained(tmp_path / "out" / "erasers").values()
    assert isinstance(eraser, Eraser) and (eraser.dim, eraser.rank) == (8, 1)


def test_one_column_that_is_erased_wholly_is_not_read_from_what_rounding_leaves(tmp_path):
    y = torch.randint(3, (2000,), generator=torch.Generator().manual_seed(0))
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1)) + 3 * (y == 0)[:, None]
    save_file({"x": x, "y": y}, tmp_path / "x.safetensors")
    assert run("fit", tmp_path / "x.safetensors", "--out", tmp_path / "out").exit_code == 0
    (site,) = json.loads((tmp_path / "out" / "report.json").read_text())["sites"]
    assert site["before"] > site["constant"] + 0.2 and site["after"] == site["constant"]


@pytest.mark.parametrize("method", ["inlp", "alf_qleace", "rlace", "median"])
def test_fit_shards_by_other_methods(workplace, tmp_path, method):
    """What needs class covariances, or passes over the rows, gets them from shards; held-out rows stay out."""
    result = run("fit", workplace / "acts.safetensors", "--method", method, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (site,) = report["sites"]
    assert site["before"] > 0.95 and abs(site["after"] - site["constant"]) < 0.06
    (eraser,) = Scrubber.from_pretrained(tmp_path / "out" / "erasers").values()
    assert eraser.method == method and eraser.report is not None
    assert eraser.report.rows == report["rows"]["fit"]


@pytest.fixture(scope="module")
def fitted(workplace):
    arguments = ("--data", workplace / "data.jsonl", "--text", "body", "--label", "kind", "--out", workplace / "fitted")
    result = run("fit", workplace / "model", *arguments)
    assert result.exit_code == 0, result.output
    return workplace / "fitted" / "erasers"


@pytest.mark.parametrize("option", ["--add-bias", "--max-cost-ratio=99"])
def test_fold_writes_a_model_like_any_other(workplace, fitted, tmp_path, option):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = run("fold", workplace / "model", fitted, tmp_path / "out", option)
    assert result.exit_code == 0 and "folded 4 sites into 10 modules" in result.output, result.output
    folded, model = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "out", workplace / "model"))
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out")(texts(1)[0]["body"])["input_ids"]])
    scrubber = Scrubber.from_pretrained(fitted)
    if option != "--add-bias":
        scrubber = Scrubber({site: eraser.without_offset(99) for site, eraser in scrubber.items()})
    with torch.no_grad(), scrubber.attached(model):
        torch.testing.assert_close(folded(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)


def test_export_lora_writes_an_adapter(workplace, fitted, tmp_path):
    result = run("export-lora", workplace / "model", fitted, tmp_path / "out", "--lora-bias")
    assert result.exit_code == 0, result.output
    assert "LoRA of rank" in result.output and "covariance remains" in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_folding_mistakes_get_one_clear_line(workplace, fitted, tmp_path):
    post, norm = tmp_path / "post", "bert.encoder.layer.0.output.LayerNorm"
    Scrubber({norm: Eraser(torch.eye(16)[:, :1], torch.eye(16)[:1])}).save_pretrained(post)
    for arguments, message in [
        (("fold", workplace / "model", fitted, workplace / "model"), "is the model itself"),
        (
            ("fold", workplace / "encoder", tmp_path / "post", tmp_path / "out"),
            "'bert.encoder.layer.1.attention.output'",
        ),
        (("export-lora", workplace / "model", workplace / "empty", tmp_path / "out"), "scrubber.json"),
        (("export-lora", workplace / "empty", fitted, tmp_path / "out"), "no config.json"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2 and message in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["model", "encoder"])
def test_scrub_and_eval(workplace, tmp_path, model):
    common = ("--model", workplace / model, "--data", workplace / "data.jsonl", "--text", "body", "--label", "kind")
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
    common = ("--model", workplace / "model", "--data", workplace / "data.jsonl", "--text", "body", "--label", "kind")
    result = run("scrub", *common, "--out", tmp_path, "--last-token", "--sites", "residual", "--mode", "parallel")
    assert result.exit_code == 0, result.output
    scrubber = Scrubber.from_pretrained(tmp_path)
    assert list(scrubber) == ["model.layers.0", "model.layers.1"]
    assert all(eraser.report.rows == 42 for eraser in scrubber.values() if eraser.report)  # 70 % of 60 texts


@pytest.fixture(scope="module")
def two_concepts(workplace):
    """Texts of a kind and a size; some have no size, and one of these no kind either."""
    rows: list[dict[str, Any]] = [{**row, "size": ["small", "big"][i // 2 % 2]} for i, row in enumerate(texts(120))]
    for row in rows:
        row["body"] += " tiny tiny" if row["size"] == "small" else " huge huge"
    rows[3]["size"], rows[4]["size"], rows[4]["kind"] = None, None, ""
    path = workplace / "two.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_scrub_of_several_concepts_erases_each(workplace, two_concepts, tmp_path, mode):
    common = ("--model", workplace / "model", "--data", two_concepts, "--text", "body")
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
    from leace_fast import scrub
    from leace_fast.study import read_batches

    columns = ["size", "kind"]
    batches = read_batches(str(workplace / "model"), two_concepts, text="body", label=columns)
    assert batches.class_names == {"size": ("big", "small"), "kind": ("fruit", "tool")}
    inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches.fit]
    assert all(list(batch["concept_labels"]) == columns for batch in inputs)
    site = "model.layers.0.input_layernorm"
    wanted = scrub(batches.model, inputs, sites=site)[site]
    arguments = ("--model", workplace / "model", "--data", two_concepts, "--text", "body", "--sites", site)
    assert run("scrub", *arguments, "--label", "size", "--label", "kind", "--out", tmp_path).exit_code == 0
    (got,) = Scrubber.from_pretrained(tmp_path).values()
    assert torch.equal(got.left, wanted.left) and torch.equal(got.right, wanted.right)


def test_erasers_of_another_model_are_refused(workplace, tmp_path):
    common = ("--data", workplace / "data.jsonl", "--text", "body", "--label", "kind")
    assert run("scrub", "--model", workplace / "model", *common, "--out", tmp_path).exit_code == 0
    result = run("eval", "--model", workplace / "encoder", *common, "--erasers", tmp_path)
    assert result.exit_code == 2 and "fitted on another model" in result.stderr
    assert "model_type: 'llama' there, 'bert' here" in result.stderr


MISTAKES = {
    "no such model": (("fit", "./nowhere", "--data", "data.jsonl"), "no file or folder ./nowhere"),
    "no such shard": (("fit", "acts.npz"), "no file or folder acts.npz"),
    "an empty folder": (("fit", "empty", "--data", "data.jsonl"), "no config.json and no activation shards"),
    "no data": (("fit", "model"), "give --data"),
    "no such data": (("fit", "model", "--data", "nope.jsonl"), "no file nope.jsonl"),
    "data of another kind": (("fit", "model", "--data", "data.csv"), "expected one of .jsonl, .jsonl.gz, .parquet"),
    "data for shards": (("fit", "acts.safetensors", "--data", "data.jsonl"), "leave --data out"),
    "options of models for shards": (
        ("fit", "acts.safetensors", "--sites", "norms", "--max-tokens", 5, "--device", "cpu"),
        "need no model: leave --sites, --max-tokens, --device out",
    ),
    "no such dtype": (
        (*("fit", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind"), "--dtype", "half"),
        "no dtype 'half', expected one of auto, float32, bfloat16, float16",
    ),
    "no such device": (
        (*("fit", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind"), "--device", "abacus"),
        "no device 'abacus' here .* expected one of cpu",
    ),
    "fit into a file": (("fit", "acts.safetensors", "--out", "data.jsonl"), "data.jsonl is a file, expected a folder"),
    "demo into a file": (("demo", "--out", "data.jsonl"), "data.jsonl is a file, expected a folder"),
    "scrub into a file": (("scrub", "--model", "model", "--data", "data.jsonl", "--out", "data.jsonl"), "is a file"),
    "fold into a file": (("fold", "model", "empty", "data.jsonl"), "data.jsonl is a file, expected a folder"),
    "LoRA into a file": (("export-lora", "model", "empty", "data.jsonl"), "data.jsonl is a file, expected a folder"),
    "no such text column": (
        ("fit", "model", "--data", "data.jsonl"),
        "its columns: 'body', 'kind'; name one with --text",
    ),
    "no such label column": (
        ("fit", "model", "--data", "data.jsonl", "--text", "body"),
        "no column 'label'; its columns: 'body', 'kind'; name one with --label",
    ),
    "one class": (("fit", "model", "--data", "one.jsonl"), "only the class 'a'"),
    "one text of a class": (("fit", "model", "--data", "few.jsonl"), "class 'b' of 'label' has 1 distinct text"),
    "no such method": (("fit", "acts.safetensors", "--method", "magic"), "unknown method 'magic'"),
    "method that needs labels": (
        ("fit", "acts.safetensors", "--method", "oracle"),
        "the method 'oracle' needs the labels where it is applied: call it in Python, or use one of leace, orth",
    ),
    "no such site": (
        ("fit", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind", "--sites", "model.layers.7.norm"),
        "model.layers.7.norm.* expected norms, residual, attention_out, mlp_out, names of modules or patterns",
    ),
    "shards without labels": (("fit", "nolabels.safetensors"), "holds x but no y"),
    "shards of one class": (("fit", "oneclass.safetensors"), "only the class 1"),
    "shards with NaN": (
        ("fit", "nan.safetensors"),
        "row 7 of nan.safetensors holds NaN or Inf: leave it out, or label",
    ),
    "a damaged model": (
        ("fit", "damaged", "--data", "data.jsonl", "--text", "body", "--label", "kind"),
        "the model 'damaged' cannot be loaded",
    ),
    "a file for a model": (("fit", "data.jsonl", "--data", "data.jsonl"), "data.jsonl is a file"),
    "scrub without data": (("scrub", "--model", "model", "--data", "nope.jsonl"), "no file nope.jsonl"),
    "scrub in an unknown mode": (
        (*("scrub", "--model", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind"), "--mode", "all"),
        "mode is 'all'",
    ),
    "scrub of a column twice": (
        ("scrub", "--model", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind", "--label", "kind"),
        "the columns of labels are 'kind', 'kind', expected one or several, each once",
    ),
    "scrub of a column that is missing": (
        ("scrub", "--model", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind", "--label", "size"),
        "no column 'size'; its columns: 'body', 'kind'; name one with --label",
    ),
    "scrub of several concepts by a method for one": (
        (
            *("scrub", "--model", "model", "--data", "two.jsonl", "--text", "body", "--method", "inlp"),
            *("--label", "kind", "--label", "size"),
        ),
        "the method 'inlp' erases one concept, the batches have kind, size: use leace or orth",
    ),
    "eval of several concepts": (
        ("eval", "--model", "model", "--data", "data.jsonl", "--label", "kind", "--label", "size"),
        "one concept is measured at a time, got kind, size: give one --label",
    ),
    "fit of several concepts": (
        ("fit", "model", "--data", "data.jsonl", "--label", "kind", "--label", "size"),
        "give one --label (scrub takes several)",
    ),
    "eval without erasers": (
        ("eval", "--model", "model", "--data", "data.jsonl", "--erasers", "empty"),
        "holds no scrubber.json",
    ),
    "demo without assets": (("demo", "--assets", "empty"), "config.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("two_concepts")
def test_a_mistake_gets_one_clear_line(workplace, monkeypatch, mistake):
    monkeypatch.chdir(workplace)
    (workplace / "data.csv").write_text("a,b")
    (workplace / "one.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "a"}\n')
    (workplace / "few.jsonl").write_text("".join(f'{{"text": "{t}", "label": "{"ab"[t == "z"]}"}}\n' for t in "xyz"))
    save_file({"x": torch.ones(3, 2)}, workplace / "nolabels.safetensors")
    save_file({"x": torch.ones(3, 2), "y": torch.ones(3, dtype=torch.int64)}, workplace / "oneclass.safetensors")
    x = torch.randn(50, 2)
    x[7] = torch.nan
    save_file({"x": x, "y": torch.arange(50) % 2}, workplace / "nan.safetensors")
    shutil.copytree(workplace / "model", workplace / "damaged", dirs_exist_ok=True)
    (workplace / "damaged" / "model.safetensors").write_bytes(b"damaged")
    arguments, message = MISTAKES[mistake]
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert message in lines[0] or re.search(message, lines[0]), lines[0]
    assert not (workplace / "leace-fit").exists() and not (workplace / "demo").exists()


def test_help_names_the_commands():
    result = run("--help")
    assert result.exit_code == 0
    assert all(command in result.output for command in ("demo", "fit", "fold", "export-lora", "doctor"))
