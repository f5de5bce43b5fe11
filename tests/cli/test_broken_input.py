"""Whatever a person can hand a command, broken: one line that names it, exit code 2, nothing written, no traceback."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run, texts
from safetensors.torch import load_file, save_file

DATA = ("--data", "data.jsonl", "--text", "body", "--label", "kind")
# commands that take a model, with sound values for the rest
OF_MODELS: dict[str, tuple[str, ...]] = {
    "fit": ("fit", "{}", *DATA, "--out", "out"),
    "scrub": ("scrub", "{}", *DATA, "--out", "out"),
    "eval": ("eval", "{}", *DATA, "--erasers", "fitted/erasers"),
    "fold": ("fold", "{}", "--erasers", "fitted/erasers", "--out", "out"),
    "export-lora": ("export-lora", "{}", "--erasers", "fitted/erasers", "--out", "out"),
}
OF_TEXTS: dict[str, tuple[str, ...]] = {
    "fit": ("fit", "model", "--data", "{}", *DATA[2:], "--out", "out"),
    "scrub": ("scrub", "model", "--data", "{}", *DATA[2:], "--out", "out"),
    "eval": ("eval", "model", "--data", "{}", *DATA[2:]),
    "neutral": ("scrub", "model", *DATA, "--neutral", "{}", "--out", "out"),
}
OF_ERASERS: dict[str, tuple[str, ...]] = {
    "eval": ("eval", "model", *DATA, "--erasers", "{}"),
    "fold": ("fold", "model", "--erasers", "{}", "--out", "out"),
    "export-lora": ("export-lora", "model", "--erasers", "{}", "--out", "out"),
}


@pytest.fixture(autouse=True)
def place(workplace: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each test, with what the commands need."""
    for name in ("model", "fitted"):
        (tmp_path / name).symlink_to(workplace / name)
    for name in ("data.jsonl", "acts.safetensors"):
        shutil.copy(workplace / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments: tuple[str, ...], what: Path | str, *names: str) -> str:
    """Run a command that must fail; return its one line, which has all the names."""
    result = run(*(argument.format(what) for argument in arguments))
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("warning: ")]
    assert result.exit_code == 2, (result.output, result.exception)
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in result.output, result.output
    assert all(name in lines[0] for name in names), lines[0]
    assert not Path("out").exists()
    return lines[0]


# ------------------------------------------------------------------------ models


def edited(**changes: Any) -> Callable[[Path], None]:
    """Change entries of a model's config; None takes one away."""

    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text()) | changes
        kept = {name: value for name, value in config.items() if value is not None}
        (model / "config.json").write_text(json.dumps(kept))

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return change


def holding(name: str, data: bytes) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).write_bytes(data)

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        data = (model / name).read_bytes()
        (model / name).write_bytes(data[: int(share * len(data))])

    return change


def less_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights[max(name for name in weights if "layers.1" in name)]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def gguf_alone(model: Path) -> None:
    for path in model.iterdir():
        path.unlink()
    (model / "model.gguf").write_bytes(b"GGUF")


MODELS: dict[str, Callable[[Path], None]] = {
    "no config": without("config.json"),
    "a config alone": without("model.safetensors"),
    "an empty config": holding("config.json", b""),
    "a config that is no JSON": holding("config.json", b"{"),
    "a config that is a list": holding("config.json", b"[]"),
    "a config of numbers": holding("config.json", b"7"),
    "a config in another encoding": holding("config.json", b'{"model_type": "caf\xe9"}'),
    "a config that is too deep": holding("config.json", b"[" * 100_000),
    "no such type of model": edited(model_type="llamma"),
    "no type of model": edited(model_type=None),
    "a type that is a number": edited(model_type=7),
    "no such architecture, which another type has": edited(model_type="bert", architectures=["BertForMaskedLM"]),
    "a width of zero": edited(hidden_size=0),
    "a negative width": edited(hidden_size=-16),
    "a width that is a word": edited(hidden_size="wide"),
    "heads that do not divide": edited(num_attention_heads=0),
    "more layers than there are": edited(num_hidden_layers=5, layer_types=None),
    "a larger vocabulary": edited(vocab_size=10_000),
    "architectures that are no list": edited(architectures=7),
    "weights that are no file of weights": holding("model.safetensors", b"damaged"),
    "empty weights": holding("model.safetensors", b""),
    "weights cut in the header": cut("model.safetensors", 0.01),
    "weights cut in the middle": cut("model.safetensors", 0.5),
    "weights cut at the end": cut("model.safetensors", 0.999),
    "a weight that is missing": less_weights,
    "weights of a git pointer": holding("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid"),
    "a file of GGUF alone": gguf_alone,
}


@pytest.mark.parametrize("command", OF_MODELS)
@pytest.mark.parametrize("fault", MODELS)
def test_broken_models_are_named(place, workplace, command, fault):
    shutil.copytree(workplace / "model", place / "broken")
    MODELS[fault](place / "broken")
    refused(OF_MODELS[command], "broken", "broken")


TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "no tokenizer": without("tokenizer.json", "tokenizer_config.json"),
    "a tokenizer that is no JSON": holding("tokenizer.json", b"{"),
    "an empty tokenizer": holding("tokenizer.json", b"{}"),
    "a tokenizer cut in the middle": cut("tokenizer.json", 0.5),
    "a config of the tokenizer that is no JSON": holding("tokenizer_config.json", b"{"),
    "a config of the tokenizer that is a list": holding("tokenizer_config.json", b"[]"),
}


@pytest.mark.parametrize("command", ["fit", "scrub", "eval"])
@pytest.mark.parametrize("fault", TOKENIZERS)
def test_broken_tokenizers_are_named(place, workplace, command, fault):
    shutil.copytree(workplace / "model", place / "broken")
    TOKENIZERS[fault](place / "broken")
    refused(OF_MODELS[command], "broken", "tokenizer", "broken")


@pytest.mark.parametrize("command", OF_MODELS)
@pytest.mark.parametrize("source", ["nowhere/at/all", "./gone", "data.jsonl", "empty", "", "x" * 300, "a b", "a/../b"])
def test_what_is_no_model_is_named(place, command, source, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (place / "empty").mkdir()
    refused(OF_MODELS[command], source)


def test_a_tokenizer_of_another_model_is_named(place, workplace):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(workplace / "model", place / "broken")
    made = Tokenizer(models.WordLevel({"[UNK]": 100_000, **{w: 200_000 + i for i, w in enumerate("ab")}}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(place / "broken")
    for command in ("fit", "scrub", "eval"):
        refused(OF_MODELS[command], "broken", "the tokenizer of 'broken' gives token 100000, its model knows")


# -------------------------------------------------------------------------- data


LINES = "".join(json.dumps({"body": row["body"], "kind": row["kind"]}) + "\n" for row in texts(20)).encode()


def of(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def labelled(*labels: Any) -> bytes:
    return of([{"body": f"text {i}", "kind": label} for i, label in enumerate(labels)])


FILES: dict[str, tuple[str, bytes]] = {
    "nothing": ("a.jsonl", b""),
    "bytes": ("a.jsonl", bytes(range(256))),
    "Latin-1": ("a.jsonl", LINES + '{"body": "caf\u00e9"}'.encode("latin-1")),
    "UTF-16": ("a.jsonl", LINES.decode().encode("utf-16")),
    "a line cut off": ("a.jsonl", LINES[:-9]),
    "an array": ("a.jsonl", b"[]\n"),
    "half a surrogate pair": ("a.jsonl", LINES + b'{"body": "\\ud83d", "kind": "tool"}\n'),
    "half a surrogate pair for a label": ("a.jsonl", LINES + b'{"body": "x", "kind": "\\ud83d"}\n'),
    "a doubled key": ("a.jsonl", LINES + b'{"body": "x", "body": "y", "kind": "tool"}\n'),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(LINES)[:60]),
    "no gzip": ("a.jsonl.gz", LINES),
    "no parquet": ("a.parquet", LINES),
    "another kind": ("a.csv", LINES),
    "texts that are numbers": ("a.jsonl", of([{"body": i, "kind": "ab"[i % 2]} for i in range(9)])),
}
ONLY_LABELLED: dict[str, bytes] = {
    "one class": labelled("a", "a", "a"),
    "one row of a class": labelled("a", "a", "b"),
    "no label": labelled(None, None),
    "mixed labels": labelled("1", 1, "1", 1),
    "fractions": labelled(0.5, 1.5, 0.5, 1.5),
    "NaN": labelled(float("nan"), 1, 0, 1),
    "objects": labelled({"a": 1}, {"b": 2}),
    "too many labels": labelled(*range(1500)),
    "no column of labels": of([{"body": "x"}]),
    "one text for all": of([{"body": "x", "kind": "ab"[i % 2]} for i in range(8)]),
}


@pytest.mark.parametrize("command", OF_TEXTS)
@pytest.mark.parametrize("fault", FILES)
def test_broken_texts_are_named(place, command, fault):
    name, data = FILES[fault]
    (place / name).write_bytes(data)
    refused(OF_TEXTS[command], name, name)


@pytest.mark.parametrize("command", ["fit", "scrub", "eval"])
@pytest.mark.parametrize("fault", ONLY_LABELLED)
def test_labels_that_tell_nothing_are_named(place, command, fault):
    (place / "a.jsonl").write_bytes(ONLY_LABELLED[fault])
    refused(OF_TEXTS[command], "a.jsonl")


@pytest.mark.parametrize("command", OF_TEXTS)
def test_texts_that_are_no_file_are_named(place, command):
    (place / "folder.jsonl").mkdir()
    (place / "link.jsonl").symlink_to("gone.jsonl")
    for name in ("gone.jsonl", "folder.jsonl", "link.jsonl", "data.jsonl/a.jsonl", "x" * 300 + ".jsonl"):
        refused(OF_TEXTS[command], name, name)


# ------------------------------------------------------------- erasers and shards


def truncated(source: Path, to: Path, places: int = 20) -> list[str]:
    """Copies of a file that end at each of so many places."""
    data, names = source.read_bytes(), []
    for part in range(places):
        names.append(f"{part}{''.join(source.suffixes)}")
        (to / names[-1]).write_bytes(data[: len(data) * part // places])
    return names


@pytest.mark.parametrize("command", OF_ERASERS)
@pytest.mark.parametrize("what", ["index", "site", "seen"])
def test_erasers_that_are_cut_off_are_named(place, fitted, command, what):
    names = {"index": "scrubber.json", "site": next(p.name for p in fitted.glob("*.safetensors")), "seen": "seen.bin"}
    for part in range(0, 20, 3):
        shutil.rmtree(place / "broken", ignore_errors=True)
        shutil.copytree(fitted, place / "broken")
        found = sorted((place / "broken").rglob(names[what]))
        data = found[0].read_bytes()
        found[0].write_bytes(data[: len(data) * part // 20])
        refused(OF_ERASERS[command], "broken", "broken")


@pytest.mark.parametrize("command", OF_ERASERS)
def test_what_are_no_erasers_is_named(place, command):
    (place / "empty").mkdir()
    for name in ("gone", "empty", "data.jsonl", "model", "x" * 300):
        refused(OF_ERASERS[command], name, name)


SHARDS = ("fit", "{}", "--out", "out")


@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
def test_shards_that_are_cut_off_or_noise_are_named(place, kind):
    x, y = np.random.default_rng(0).normal(size=(50, 4)).astype("f4"), np.arange(50) % 2
    if kind == "safetensors":
        save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, place / "whole.safetensors")
    elif kind == "npz":
        np.savez_compressed(place / "whole.npz", x=x, y=y)
    else:
        np.save(place / "whole.x.npy", x)
        for part in range(20):
            np.save(place / f"{part}.y.npy", y)
        np.save(place / "noise.y.npy", y)
    suffix = ".x.npy" if kind == "npy" else f".{kind}"
    for name in truncated(place / f"whole{suffix}", place):
        refused(SHARDS, name, name)
    noise = random.Random(0)
    whole = (place / f"whole{suffix}").read_bytes()
    for _ in range(20):
        (place / f"noise{suffix}").write_bytes(noise.randbytes(noise.randrange(400)))
        refused(SHARDS, f"noise{suffix}", f"noise{suffix}")
    for _ in range(4):
        start = noise.randrange(len(whole) // 4)  # in the header, or the first of the rows
        (place / f"noise{suffix}").write_bytes(whole[:start] + noise.randbytes(8) + whole[start + 8 :])
        result = run(*(argument.format(f"noise{suffix}") for argument in SHARDS))
        assert result.exit_code in (0, 2) and "Traceback" not in result.output, (result.output, result.exception)
        shutil.rmtree("out", ignore_errors=True)


@pytest.mark.parametrize("command", ["fit", "scrub", "eval"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_texts_that_are_noise_or_cut_off_give_no_traceback(place, command, suffix):
    rows = [{"body": row["body"], "kind": row["kind"]} for row in texts(20)]
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(
            pytest.importorskip("pyarrow").Table.from_pylist(rows), "w.parquet"
        )
    else:
        Path(f"w{suffix}").write_bytes(gzip.compress(LINES) if suffix.endswith("gz") else LINES[:-20])
    noise = random.Random(1)
    cases = [f"{i}{suffix}" for i in range(10)]
    for name in cases:
        Path(name).write_bytes(noise.randbytes(noise.randrange(1, 300)))
    names = truncated(place / f"w{suffix}", place) if suffix != ".jsonl" else []
    for name in {*names, *cases}:
        refused(OF_TEXTS[command], name, name)


# ------------------------------------------------------------------------- demo


@pytest.mark.parametrize(
    "file", ["held_out.jsonl.gz", "library.jsonl.gz", "model/model.safetensors", "model/config.json"]
)
@pytest.mark.parametrize(
    "data",
    [b"", b"noise", gzip.compress(b"{}\n"), gzip.compress(b'{"module": "a"}\n'), None],
    ids=["empty", "noise", "no columns", "no text", "cut off"],
)
def test_broken_assets_of_the_demo_are_named(place, tmp_path_factory, file, data):
    import tiny_demo

    tiny_demo.write_assets(place / "assets")
    whole = (place / "assets" / file).read_bytes()
    (place / "assets" / file).write_bytes(whole[: len(whole) // 2] if data is None else data)
    refused(("demo", "--assets", "assets", "--out", "out"), "", "assets")


# ------------------------------------------------------------------ folders to write


WRITERS: dict[str, tuple[str, ...]] = {
    "demo": ("demo", "--out", "{}"),
    "fit": ("fit", "acts.safetensors", "--out", "{}"),
    "scrub": ("scrub", "model", *DATA, "--out", "{}"),
    "checkpoint": ("scrub", "model", *DATA, "--out", "out", "--checkpoint", "{}"),
    "fold": ("fold", "model", "--erasers", "fitted/erasers", "--out", "{}"),
    "export-lora": ("export-lora", "model", "--erasers", "fitted/erasers", "--out", "{}"),
}


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("out", ["data.jsonl", "data.jsonl/a/b", "/proc/erasers", "/proc/self/a", "nowhere", "x" * 300])
def test_folders_that_cannot_be_written_are_refused_before_any_work(place, command, out, monkeypatch):
    from leace_fast.study import _activations, _models

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done before the folder was looked at")

    monkeypatch.setattr(_models, "load_model", work)
    monkeypatch.setattr(_activations, "Shards", work)
    (place / "nowhere").symlink_to("gone/deep")
    before = sorted(place.rglob("*"))
    refused(
        WRITERS[command], out, out.partition("/")[0] or "/proc", "--checkpoint" if command == "checkpoint" else "--out"
    )
    assert sorted(place.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model-00001-of-00002.safetensors"])
def test_a_model_is_not_folded_into_a_folder_with_other_weights(place, name):
    (place / "full").mkdir()
    (place / "full" / name).write_bytes(b"weights")
    result = run(*(argument.format("full") for argument in WRITERS["fold"]))
    assert result.exit_code == 2 and f"full holds weights already ({name})" in result.stderr
    assert [path.name for path in (place / "full").iterdir()] == [name]


# ------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("scrub", ("--buffer", "much")),
        ("scrub", ("--buffer", "-1GiB")),
        ("scrub", ("--buffer", "")),
        ("scrub", ("--buffer", "nan")),
        ("scrub", ("--max-tokens", "-5")),
        ("scrub", ("--max-tokens", "1e3")),
        ("scrub", ("--contrasts", "1.5")),
        ("scrub", ("--contrasts", "nan")),
        ("scrub", ("--mode", "")),
        ("scrub", ("--sites", "")),
        ("scrub", ("--sites", "[")),
        ("scrub", ("--sites", "model.layers.*.nothing")),
        ("scrub", ("--method", "")),
        ("scrub", ("--device", "meta")),
        ("scrub", ("--device", "cuda:99")),
        ("scrub", ("--device", "cpu:-3")),
        ("eval", ("--dtype", "float8_e4m3fn")),
        ("eval", ("--dtype", "")),
        ("eval", ("--text", "")),
        ("eval", ("--label", "")),
        ("eval", ("--groups", "")),
        ("fold", ("--max-cost-ratio", "nan")),
        ("fold", ("--max-cost-ratio", "-1")),
        ("fold", ("--device", "meta")),
        ("export-lora", ("--max-cost-ratio", "much")),
        ("export-lora", ("--max-cost-ratio", "nan")),
        ("fit", ("--contrasts", "-1")),
        ("fit", ("--method", "\u00fc")),
    ],
)
def test_values_of_options_that_are_none(place, command, options):
    refused((*OF_MODELS[command], *options), "model")
