"""What mistakes on the command line say: one clear line."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
import torch
from command_line import run
from safetensors.torch import load_file, save_file

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
    "scrub into a file": (("scrub", "model", "--data", "data.jsonl", "--out", "data.jsonl"), "is a file"),
    "fold into a file": (
        ("fold", "model", "--erasers", "empty", "--out", "data.jsonl"),
        "data.jsonl is a file, expected a folder",
    ),
    "LoRA into a file": (
        ("export-lora", "model", "--erasers", "empty", "--out", "data.jsonl"),
        "data.jsonl is a file, expected a folder",
    ),
    "fold over the model": (("fold", "model", "--erasers", "empty", "--out", "model"), "is the model itself"),
    "LoRA over the model": (("export-lora", "model", "--erasers", "empty", "--out", "model"), "is the model itself"),
    "scrub over the model": (("scrub", "model", "--data", "data.jsonl", "--out", "model"), "is the model itself"),
    "scrub below a file": (("scrub", "model", "--data", "data.jsonl", "--out", "data.jsonl/deep/er"), "is a file"),
    "a checkpoint below a file": (
        ("scrub", "model", "--data", "data.jsonl", "--checkpoint", "data.jsonl/deep"),
        "data.jsonl is a file, expected a folder",
    ),
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
    "scrub without data": (("scrub", "model", "--data", "nope.jsonl"), "no file nope.jsonl"),
    "scrub in an unknown mode": (
        (*("scrub", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind"), "--mode", "all"),
        "mode is 'all'",
    ),
    "scrub of a column twice": (
        ("scrub", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind", "--label", "kind"),
        "the columns of labels are 'kind', 'kind', expected one or several, each once",
    ),
    "scrub of a column that is missing": (
        ("scrub", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind", "--label", "size"),
        "no column 'size'; its columns: 'body', 'kind'; name one with --label",
    ),
    "scrub of several concepts by a method for one": (
        (
            *("scrub", "model", "--data", "two.jsonl", "--text", "body", "--method", "inlp"),
            *("--label", "kind", "--label", "size"),
        ),
        "the method 'inlp' erases one concept, the batches have kind, size: use leace or orth",
    ),
    "eval of several concepts": (
        ("eval", "model", "--data", "data.jsonl", "--label", "kind", "--label", "size"),
        "one concept is measured at a time, got kind, size: give one --label",
    ),
    "fit of several concepts": (
        ("fit", "model", "--data", "data.jsonl", "--label", "kind", "--label", "size"),
        "give one --label (scrub takes several)",
    ),
    "eval without erasers": (
        ("eval", "model", "--data", "data.jsonl", "--erasers", "empty"),
        "holds no scrubber.json",
    ),
    "groups of a column that is missing": (
        (*("scrub", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind"), "--groups", "author"),
        "no column 'author'; its columns: 'body', 'kind'; name one with --groups",
    ),
    "texts without a group": (
        ("eval", "model", "--data", "authors.jsonl", "--groups", "some"),
        "column 'some' of authors.jsonl is empty in 2 of 8 rows, expected the group of each",
    ),
    "groups that are numbers with a fraction": (
        ("fit", "model", "--data", "authors.jsonl", "--groups", "year"),
        "column 'year' of authors.jsonl holds 1.5 (float), expected groups: strings or integers",
    ),
    "one group": (
        ("scrub", "model", "--data", "authors.jsonl", "--groups", "country"),
        "the class 'a' of 'label' has 1 distinct group, expected 2 or more: one to fit on, one held out",
    ),
    "one group held out": (
        ("eval", "model", "--data", "authors.jsonl", "--groups", "author"),
        "the texts held out are of 1 author, expected 2 or more, one to train the probes and another to test them",
    ),
    "groups that span the classes": (
        ("scrub", "model", "--data", "authors.jsonl", "--label", "three", "--groups", "span"),
        "all groups of 'k' of 'three' also bear other labels, for which they are held out",
    ),
    "groups for shards": (("fit", "acts.safetensors", "--groups", "author"), "need no model: leave --groups out"),
    "shards of two groups": (("fit", "twogroups.safetensors"), "the rows are of 2 groups, expected 3 or more"),
    "contrasts of shards without groups": (
        ("fit", "acts.safetensors", "--contrasts", 3),
        "contrasts need groups, acts.safetensors has none: add the array groups (rows,) to each shard",
    ),
    "a metric for shards": (("fit", "acts.safetensors", "--metric", "all"), "need no model: leave --metric out"),
    "a metric for another method": (
        ("scrub", "model", "--data", "data.jsonl", "--method", "orth", "--metric", "all", "--contrasts", "2"),
        "--metric, --contrasts: for the method leace alone, got the method 'orth': leave one out",
    ),
    "neutral texts for another method": (
        ("fit", "model", "--data", "data.jsonl", "--method", "orth", "--neutral", "data.jsonl"),
        "--neutral: for the method leace alone, got the method 'orth'",
    ),
    "no such metric": (
        ("scrub", "model", "--data", "data.jsonl", "--metric", "some"),
        "--metric is 'some', expected all or labelled",
    ),
    "contrasts that are no number": (
        ("scrub", "model", "--data", "data.jsonl", "--contrasts", "-1"),
        "--contrasts is '-1', expected a number of directions, 0 or more, or auto",
    ),
    "no such neutral texts": (
        (*("scrub", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind"), "--neutral", "nope.txt"),
        "no file nope.txt, expected texts: .jsonl",
    ),
    "neutral texts without text": (
        (*("scrub", "model", "--data", "data.jsonl", "--text", "body", "--label", "kind"), "--neutral", "blank.txt"),
        "blank.txt holds no text, expected some for --neutral",
    ),
    "demo without assets": (("demo", "--assets", "empty"), "config.json"),
}

# wrong usage -> what is said of it, and where the help is
MISUSES = {
    "no model": (("scrub",), "Missing argument 'MODEL': see leace-fast scrub --help"),
    "no data": (("scrub", "model"), "Missing option '--data': see leace-fast scrub --help"),
    "the model as an option": (("eval", "--model", "model"), "No such option: --model"),
    "folders as arguments": (("fold", "model", "erasers", "out"), "Missing option '--erasers'"),
    "too many arguments": (("doctor", "torch"), "unexpected extra argument"),
    "no number": (("fit", "model", "--max-tokens", "many"), "Invalid value for '--max-tokens': "),
    "a number out of range": (("fit", "model", "--max-tokens", "0"), "Invalid value for '--max-tokens': "),
    "no such command": (("scub",), "No such command 'scub'. Did you mean 'scrub'?: see leace-fast --help"),
    "no such option": (("--nope",), "No such option: --nope"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_wrong_usage_gets_one_clear_line(misuse):
    arguments, message = MISUSES[misuse]
    result = run(*arguments)
    assert result.exit_code == 2 and not result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line and line.endswith("--help")


def test_the_whole_error_is_shown_on_demand(monkeypatch):
    monkeypatch.setenv("LEACE_FAST_DEBUG", "1")
    result = run("fit", "./nowhere", "--data", "data.jsonl")
    assert isinstance(result.exception, FileNotFoundError) and not result.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("two_concepts")
def test_a_mistake_gets_one_clear_line(workplace, monkeypatch, mistake):
    monkeypatch.chdir(workplace)
    (workplace / "data.csv").write_text("a,b")
    (workplace / "one.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "a"}\n')
    (workplace / "few.jsonl").write_text("".join(f'{{"text": "{t}", "label": "{"ab"[t == "z"]}"}}\n' for t in "xyz"))
    first, second, third = sorted("xyz", key=lambda name: hashlib.sha256(name.encode()).digest())
    span = [first, second, second, third, first, third, first, third]
    authors = [
        {
            **{"text": f"text {i}", "label": "ab"[i % 2], "author": "st"[i // 2 % 2], "country": "here", "year": 1.5},
            **{"some": "" if i > 5 else "x", "three": "kkllmmmm"[i], "span": span[i]},
        }
        for i in range(8)
    ]
    (workplace / "authors.jsonl").write_text("\n".join(map(json.dumps, authors)))
    (workplace / "blank.txt").write_text("\n\n")
    acts = load_file(workplace / "acts.safetensors")
    save_file({**acts, "groups": torch.arange(len(acts["y"])) % 2}, workplace / "twogroups.safetensors")
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
