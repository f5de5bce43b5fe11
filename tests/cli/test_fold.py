"""`leace-fast fold` and `export-lora`."""

from __future__ import annotations

import pytest
import torch
from command_line import run, texts

from leace_fast import Eraser, Scrubber


@pytest.mark.parametrize("option", ["--add-bias", "--max-cost-ratio=99"])
def test_fold_writes_a_model_like_any_other(workplace, fitted, tmp_path, option):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = run("fold", workplace / "model", "--erasers", fitted, "--out", tmp_path / "out", option)
    assert result.exit_code == 0 and "folded 4 sites into 10 modules" in result.output, result.output
    assert "of the erasers' effect from the attached model's" in " ".join(result.output.split())
    folded, model = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "out", workplace / "model"))
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out")(texts(1)[0]["body"])["input_ids"]])
    scrubber = Scrubber.from_pretrained(fitted)
    if option != "--add-bias":
        scrubber = Scrubber({site: eraser.without_offset(99) for site, eraser in scrubber.items()})
    with torch.no_grad(), scrubber.attached(model):
        torch.testing.assert_close(folded(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)


def test_export_lora_writes_an_adapter(workplace, fitted, tmp_path):
    result = run("export-lora", workplace / "model", "--erasers", fitted, "--out", tmp_path / "out", "--lora-bias")
    assert result.exit_code == 0, result.output
    assert "LoRA of rank" in result.output and "covariance remains" in result.output
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == adapter | tokenizer


def test_folding_mistakes_get_one_clear_line(workplace, fitted, tmp_path):
    post, norm = tmp_path / "post", "bert.encoder.layer.0.output.LayerNorm"
    Scrubber({norm: Eraser(torch.eye(16)[:, :1], torch.eye(16)[:1])}).save_pretrained(post)
    for (command, model, erasers, out), message in [
        (("fold", workplace / "model", fitted, workplace / "model"), "is the model itself"),
        (("fold", workplace / "encoder", post, tmp_path / "out"), "'bert.encoder.layer.1.attention.output'"),
        (("export-lora", workplace / "model", workplace / "empty", tmp_path / "out"), "scrubber.json"),
        (("export-lora", workplace / "empty", fitted, tmp_path / "out"), "no config.json"),
    ]:
        result = run(command, model, "--erasers", erasers, "--out", out)
        assert result.exit_code == 2 and message in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_fold_that_stops_leaves_the_folder_as_it_was(workplace, fitted, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    def stop(model, folder, *_, **__):
        (folder / "model.safetensors").write_text("half")
        raise OSError("the disk is full")

    out = tmp_path / "out"
    out.mkdir()
    (out / "notes").write_text("kept")
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", stop)
    result = run("fold", workplace / "model", "--erasers", fitted, "--out", out)
    assert result.exit_code == 2 and "the disk is full" in result.stderr, result.output
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "notes"]
    monkeypatch.undo()
    assert run("fold", workplace / "model", "--erasers", fitted, "--out", out).exit_code == 0
    assert {"notes", "config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in out.iterdir()}
