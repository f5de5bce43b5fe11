"""`gguf` and `inspect`, and the adapter folder that `export-lora` completes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run

from leace_fast import Eraser, Moments, Scrubber
from leace_fast.integrations import inspect_file

pytest.importorskip("gguf", reason="GGUF files need gguf: pip install 'leace-fast[gguf]'")


def lines(result: Any) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.output.strip().splitlines()


def test_a_model_folded_on_its_way(workplace: Path, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "folded.gguf"
    said = lines(run("gguf", workplace / "model", "--erasers", fitted, "--out", out, "--max-cost-ratio", 9))
    assert said[-1] == f"llama-server --model {out}" and f"Written: {out}" in said
    told = inspect_file(out)
    assert told["way"] == "fold" and told["erasers"] == inspect_file(fitted)["erasers"]
    assert {facts["offset"] for facts in told["sites"].values()} == {"lost"}
    run("gguf", workplace / "model", "--erasers", fitted, "--out", out, "--add-bias")
    assert {facts["offset"] for facts in inspect_file(out)["sites"].values()} == {"kept"}


def test_an_adapter(workplace: Path, fitted: Path, tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "adapter.gguf"
    said = lines(run("export-lora", workplace / "model", "--erasers", fitted, "--out", adapter, "--max-cost-ratio", 9))
    stacks = {line.partition(": ")[0]: line.partition(": ")[2] for line in said[-3:]}
    assert set(stacks) == {"vLLM", "llama.cpp", "PEFT"}
    assert f"--lora-modules erased={adapter} --max-lora-rank 8" in stacks["vLLM"]
    assert f"--adapter {adapter}" in stacks["llama.cpp"]
    assert lines(run("gguf", workplace / "model", "--adapter", adapter, "--out", out))[-1].endswith(f"--lora {out}")
    told = inspect_file(out)
    assert told["sites"] and told["erasers"] == inspect_file(fitted)["erasers"] == inspect_file(adapter)["erasers"]
    assert told["base_model"]["sha256"] == inspect_file(adapter)["base_model"]["sha256"] != ""


@pytest.mark.parametrize("with_model", [False, True])
def test_transformers_loads_the_adapter_by_its_folder(
    with_model: bool, workplace: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another working folder too; with the model beside it also where a config is looked for there."""
    pytest.importorskip("peft")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(workplace)
    options = ["--with-model"] if with_model else []
    command = ("export-lora", "model", "--erasers", fitted, "--out", tmp_path / "adapter", "--max-cost-ratio", 9)
    lines(run(*command, *options))
    monkeypatch.chdir(tmp_path)
    ids = AutoTokenizer.from_pretrained("adapter")("some words", return_tensors="pt").input_ids
    if with_model:
        assert AutoConfig.from_pretrained("adapter").model_type == "llama"
    clean = AutoModelForCausalLM.from_pretrained(workplace / "model")
    adapted = AutoModelForCausalLM.from_pretrained("adapter")
    sites = Scrubber.from_pretrained(fitted)
    maps = Scrubber({site: each.without_offset(9) for site, each in sites.items()})
    with torch.no_grad(), maps.attached(clean):
        wanted = clean(ids).logits
    torch.testing.assert_close(adapted(ids).logits.detach(), wanted, rtol=0, atol=1e-4)
    if with_model:
        again = run(*command, *options)
        assert again.exit_code == 2 and "holds weights already" in again.output


@pytest.mark.parametrize("as_json", [False, True])
def test_inspect_says_what_there_is(workplace: Path, fitted: Path, as_json: bool) -> None:
    file = next(path for path in fitted.glob("*.safetensors"))
    for path, kind in ((fitted, "scrubber"), (file, "eraser")):
        said = run("inspect", path, *(["--json"] if as_json else []))
        assert said.exit_code == 0, said.output
        if as_json:
            assert json.loads(said.output)["kind"] == kind
        else:
            assert said.output.startswith(f"kind: {kind}\n") and "leace" in said.output
    whole = inspect_file(fitted)
    site = Eraser.load(file).site
    assert whole["sites"][site]["digest"] == inspect_file(file)["digest"]


REFUSED = [
    (["gguf", "MODEL", "--out", "TMP"], "is a folder, expected a file"),
    (["gguf", "MODEL", "--out", "TMP/none/file.gguf"], "make it first"),
    (["gguf", "MODEL", "--erasers", "a", "--adapter", "b", "--out", "TMP/file.gguf"], "give one"),
    (["gguf", "MODEL", "--adapter", "TMP", "--out", "TMP/file.gguf"], "holds no adapter_config.json"),
    (["gguf", "ENCODER", "--out", "TMP/file.gguf"], "a model of type 'bert' is not written as GGUF"),
    (["inspect", "TMP/none"], "no file or folder"),
    (["inspect", "TMP"], "holds nothing that is known"),
    (["inspect", "MODEL/model.safetensors"], "is a safetensors file of which nothing is told"),
    (["inspect", "MODEL/config.json"], "is damaged, or none of what is known"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(words: list[str], message: str, workplace: Path, tmp_path: Path) -> None:
    names = {"MODEL": workplace / "model", "ENCODER": workplace / "encoder", "TMP": tmp_path}
    for name, path in names.items():
        words = [word.replace(name, str(path), 1) for word in words]
    result = run(*words)
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    assert result.output.count("\n") == 1 and not list(tmp_path.rglob("*.gguf"))


def test_a_damaged_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\0\0")
    result = run("inspect", tmp_path / "model.gguf")
    assert result.exit_code == 2 and "is a damaged GGUF file" in result.output


def test_moments(workplace: Path, tmp_path: Path) -> None:
    Moments(4, num_classes=2).update(torch.randn(10, 4), torch.arange(10) % 2).save(tmp_path / "moments.safetensors")
    assert inspect_file(tmp_path / "moments.safetensors") == {"kind": "moments", "dim": 4, "rows": 10}
