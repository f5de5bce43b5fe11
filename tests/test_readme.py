"""The README: its examples run, its links lead somewhere, and what it says of the peer is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import leace_fast as lf

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"^```python([^\n]*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("index", [i for i, (mark, _) in enumerate(BLOCKS) if "notest" not in mark])
def test_examples_run(index, capsys):
    exec(compile(BLOCKS[index][1], f"README.md, example {index + 1}", "exec"), {})
    assert "leace: rank 2 of 64" in capsys.readouterr().out


def test_the_examples_in_a_model_run(tmp_path, monkeypatch, capsys):
    from tiny_models import build

    monkeypatch.chdir(tmp_path)
    scrubbing, serving = [code for mark, code in BLOCKS if "notest" in mark]
    model = build("llama", torch.float32)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 63, (8, 16), generator=generator) for _ in range(4)]
    batches = [{"input_ids": i, "attention_mask": torch.ones_like(i), "concept_labels": i % 6} for i in ids]
    scope = {"lf": lf, "model": model, "batches": batches, "example": {"input_ids": ids[0]}}
    exec(
        compile(
            scrubbing.replace("generate(...)", "generate(batches[0]['input_ids'], max_new_tokens=2)"),
            "README.md",
            "exec",
        ),
        scope,
    )
    assert len(scope["scrubber"]) == 4
    assert "nats" in capsys.readouterr().out
    for way in serving.strip().splitlines():
        exec(compile(way, "README.md", "exec"), {**scope, "model": build("llama", torch.float32)})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_a_rare_class_is_erased_where_the_peer_leaves_it():
    concept_erasure = pytest.importorskip("concept_erasure")
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(50_000) % 1000 == 0).long()
    x = torch.randn(50_000, 16, generator=generator, dtype=torch.float64)
    x[:, 0] += 6 * y

    def gap(erased):
        return (erased[y == 1].mean(0) - erased[y == 0].mean(0)).norm().item()

    # The singular value is about share * separation = 0.006, below the 0.01 under which the peer erases nothing.
    peer = concept_erasure.LeaceFitter.fit(x, torch.nn.functional.one_hot(y, 2)).eraser
    assert gap(peer(x)) == pytest.approx(gap(x)) and gap(x) > 5
    assert gap(lf.leace(lf.Moments(16, 2).update(x, y))(x)) < 1e-9
