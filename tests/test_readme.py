"""The README: its examples run, and what it says of the peer is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import leace_fast as lf

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "appendix" / "performance.md").read_text(encoding="utf-8")
MACHINES = ("cpu", "cpu-amx", "cpu-avx2")  # as they stand in the columns of docs/appendix/performance.md
# row of the page's first table: operation of the benchmark, and what its sizes say
ROWS = {
    "statistics, float32 rows": ("moments", " float32$"),
    "statistics, bfloat16 rows": ("moments", " bfloat16$"),
    "closed form, 2 to 32 classes": ("closed form", " k=(2|32)$"),
    "closed form, 1000 classes": ("closed form", " k=1000$"),
    "erasing, rank 1 to 8": ("apply", " k=[18] "),
    "erasing, rank 64": ("apply", " k=64 "),
}
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
    ids = [torch.randint(3, 63, (8, 16), generator=generator) for _ in range(8)]
    batches = [{"input_ids": i, "attention_mask": torch.ones_like(i), "concept_labels": i % 6} for i in ids]
    scope = {
        "lf": lf,
        "model": model,
        "batches": batches[:4],
        "held_out": batches[4:],
        "example": {"input_ids": ids[0]},
    }
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


def ratios(machine: str, operation: str, sizes: str = "") -> list[float]:
    """The times of concept-erasure over ours, of one operation on one machine."""
    groups: dict[str, dict[str, float]] = {}
    results = json.loads((ROOT / "bench" / "results" / f"{machine}.json").read_text(encoding="utf-8"))
    for entry in results["benchmarks"]:
        groups.setdefault(entry["group"], {})[entry["peer"]] = entry["median"]
    kept = [peers for group, peers in groups.items() if group.startswith(f"{operation} d=") and re.search(sizes, group)]
    ours = "leace-fast"
    pairs = [(each.get("concept-erasure", each.get("concept-erasure float32")), each.get(ours)) for each in kept]
    return [theirs / own for theirs, own in pairs if theirs and own]


def range_of(values: list[float]) -> str:
    """The least and the largest of some values, as the pages write them."""
    ends = [f"{end:.1f}" if end < 10 else f"{end:.0f}" for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


@pytest.mark.parametrize("row", ROWS)
def test_the_first_table_of_the_performance_page_is_what_was_measured(row):
    cells = [range_of(ratios(machine, *ROWS[row])) for machine in MACHINES]
    assert f"| {row} | {' | '.join(cells)} |" in PERFORMANCE


def test_the_times_of_the_table_are_what_was_measured():
    def all_machines(operation: str, sizes: str = "") -> list[float]:
        return [ratio for machine in MACHINES for ratio in ratios(machine, operation, sizes)]

    closed, rows = all_machines("closed form"), all_machines("moments")
    small, large = all_machines("apply", " k=[18] "), all_machines("apply", " k=64 ")
    theirs = [1 / ratio for operation in ("orth", "oracle") for ratio in ratios("methods", operation)]
    assert f"Cholesky factor: {range_of(closed)} times as fast" in README
    assert f"float64 sums: {range_of(rows)} times as fast" in README
    assert f"one pass: {range_of(small)} times as fast" in README
    assert f"two products | {range_of(large)} times as fast" in README
    assert f"**{range_of(theirs)} times as fast**" in README


def test_the_size_of_the_peer():
    package = pytest.importorskip("concept_erasure")
    files = Path(package.__file__).parent.rglob("*.py")
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    assert round(lines, -2) == 1500 and "1,500 lines of plain torch" in README


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
