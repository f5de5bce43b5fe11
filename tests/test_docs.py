"""The pages of docs/: their examples run as they stand, on tiny models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

import leace_fast as lf
from leace_fast.demo._language_model import train_tokenizer

ROOT = Path(__file__).parents[1]
SENTENCES = [
    {"text": f"The {who} said that", "pronoun": pronoun}
    for who, pronoun in zip(["nurse", "smith", "cook", "king"] * 6, ["she", "he"] * 12, strict=True)
]


def blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run(page: str, index: int, **names: Any) -> dict[str, Any]:
    scope = {"lf": lf, "leace_fast": lf, "torch": torch, **names}
    exec(compile(blocks(page)[index].replace("generate(...)", "generate(ids, max_new_tokens=2)"), page, "exec"), scope)
    return scope


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model() -> Any:
    return tiny_models.build("llama", torch.float32)


@pytest.fixture(scope="module")
def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 63, (8, 16), generator=generator) for _ in range(4)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "concept_labels": i % 6} for i in ids]


@pytest.fixture(scope="module")
def scrubber(batches) -> lf.Scrubber:
    return lf.scrub(tiny_models.build("llama", torch.float32), batches)


def test_every_example_of_every_page_is_run_here_or_where_its_page_is_tested():
    counted = {page.name: len(blocks(page.name)) for page in (ROOT / "docs").glob("*.md") if blocks(page.name)}
    here = {"scrubbing.md": 4, "folding.md": 1, "serving.md": 2, "methods.md": 1, "migrating.md": 1}
    assert counted == {**here, "scikit-learn.md": 1}


def test_scrubbing(model, batches, tmp_path, capsys):
    run("scrubbing.md", 0, model=model, batches=batches, held_out=batches[:1], ids=batches[0]["input_ids"])
    assert "KL" in capsys.readouterr().out and lf.Scrubber.from_pretrained(tmp_path / "erasers")
    labels = run("scrubbing.md", 1, batch={}, tags=batches[0]["concept_labels"], number=None)["batch"]["concept_labels"]
    assert set(labels) == {"part of speech", "number"}


@pytest.mark.parametrize("index", [2, 3])
def test_labels_of_words_and_of_last_tokens(index, tmp_path):
    shutil.copy(ROOT / "tests" / "data" / "sample.conllu", tmp_path / "train.conllu")
    (tmp_path / "sentences.jsonl").write_text("\n".join(map(json.dumps, SENTENCES)))
    tokenizer = train_tokenizer([(tmp_path / name).read_text() for name in ("train.conllu", "sentences.jsonl")], 300)
    model = tiny_models.build("llama", torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert len(run("scrubbing.md", index, tokenizer=tokenizer, model=model)["scrubber"]) == 4


def test_folding(model, batches, scrubber, tmp_path):
    example = {"input_ids": batches[0]["input_ids"]}
    eraser = next(iter(scrubber.values()))
    run("folding.md", 0, model=model, scrubber=scrubber, example=example, eraser=eraser)
    assert (tmp_path / "adapter" / "adapter_config.json").exists()


def test_serving(model, batches, scrubber):
    batch = {"input_ids": batches[0]["input_ids"][:3]}
    run("serving.md", 0, scrubber=scrubber, model=model, batch=batch, capture=lambda model: model)
    scrubber.detach_(model)
    batch = {**batch, "max_new_tokens": 2}
    run(
        "serving.md",
        1,
        gender=scrubber,
        number=lf.random_like(scrubber),
        sites=list(scrubber),
        model=model,
        batch=batch,
    )


def test_methods():
    y, task = torch.arange(3000) % 6, torch.arange(3000) // 6 % 3
    x = torch.randn(3000, 256) + torch.randn(6, 256)[y] + torch.randn(3, 256)[task]
    page = blocks("methods.md")[0].replace("lf.Moments(dim=256, num_classes=6)", "lf.Moments(256, 6).update(x, y)")
    other, kept = lf.Moments(256, 3).update(x, task), lf.Moments(256, target_dim=1).update(x, x[:, :1])
    scope = {"lf": lf, "x": x, "y": y, "other": other, "task": kept}
    exec(compile(page.replace("import leace_fast as lf", ""), "methods.md", "exec"), scope)
    assert scope["then"].rank >= scope["both"].rank == 7 and scope["first"].rank == 1


def test_migrating():
    assert run("migrating.md", 0)["LeaceFitter"]
