"""What scrubbing a concept costs, and what it leaves: methods and modes side by side on the demo's model.

    python bench/scrubbing.py bench/results/scrubbing.json --page docs/scrubbing.md

Measures loss and divergence on held-out text, and probes inside the scrubbed model; writes the table of the page.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from leace_fast import Scrubber, evaluate, random_like, scrub
from leace_fast.demo import load_demo, machine

CONDITIONS = (
    ("leace", "sequential"),
    ("orth", "sequential"),
    ("mean_projection", "sequential"),
    ("leace", "parallel"),
)
SEEDS = 5
BEGIN, END = "<!-- table: bench/scrubbing.py -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--page", type=Path, help="the page whose table is written")
    parser.add_argument("--only-table", action="store_true", help="write the table of what was measured before")
    options = parser.parse_args()
    if not options.only_table:
        measure_all(options.out)
    if options.page:
        page, conditions = options.page.read_text(encoding="utf-8"), json.loads(options.out.read_text())["conditions"]
        before, rest = page.split(BEGIN)
        page = f"{before}{BEGIN}\n{table(conditions)}\n{END}{rest.split(END)[1]}"
        options.page.write_text(page, encoding="utf-8")


def table(conditions: dict[str, Any]) -> str:
    """Return a Markdown table of the conditions, the random ones as one."""
    random = [found for name, found in conditions.items() if name.startswith("random")]
    rows = {name: found for name, found in conditions.items() if not name.startswith("random")}
    if random:
        means = {key: sum(found[key] for found in random) / len(random) for key in ("bits_per_byte", "nats", "kl")}
        rows[f"random subspaces, mean of {len(random)}"] = {**means, "probes": {}}
    clean = rows["clean"]["bits_per_byte"]
    lines = ["| | bits per byte | rise | KL to clean, nats | probe, % (best constant) |", "|---|--:|--:|--:|---|"]
    for name, found in rows.items():
        accuracies = [100 * probe["accuracy"] for probe in found["probes"].values()]
        constants = {f"{100 * probe['constant']:.1f}" for probe in found["probes"].values()}
        probe = f"{min(accuracies):.1f} to {max(accuracies):.1f} ({', '.join(constants)})" if accuracies else ""
        bits = found["bits_per_byte"]
        rise, kl = (f"{bits - clean:+.4f}", f"{found['kl']:.4f}") if name != "clean" else ("", "")
        lines.append(f"| {name.replace('_', ' ')} | {bits:.4f} | {rise} | {kl} | {probe} |")
    return "\n".join(lines)


def measure_all(out: Path) -> None:
    """Scrub in each way, evaluate, and write the figures after each."""
    model, fit, held_out, (_, modules) = load_demo()
    text_bytes = sum(len(module.text.encode()) for module in modules)
    inputs = [{name: batch[name] for name in ("input_ids", "attention_mask", "concept_labels")} for batch in fit]
    found: dict[str, Any] = {}

    def measure(name: str, scrubber: Scrubber | None, seconds: float | None = None, probe: bool = True) -> None:
        result = evaluate(model, held_out, scrubber, text_bytes=text_bytes, probe=probe)
        probes = {site: each._asdict() for site, each in result.probes.items()}
        found[name] = {
            "nats": result.nats,
            "bits_per_byte": result.bits_per_byte,
            "perplexity": result.perplexity,
            "kl": result.kl,
            "tokens": result.tokens,
            "scrub_seconds": seconds,
            "probes": probes,
        }
        report = {"machine": machine(), "text_bytes": text_bytes, "conditions": found}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name:<28} {result.bits_per_byte:.4f} bits a byte, KL {result.kl or 0:.4f}", flush=True)

    measure("clean", None)
    scrubbers = {}
    for method, mode in CONDITIONS:
        begin = time.process_time()
        scrubbers[method, mode] = scrub(model, inputs, method=method, mode=mode)  # type: ignore[arg-type]
        measure(f"{method}, {mode}", scrubbers[method, mode], time.process_time() - begin)
    for seed in range(SEEDS):
        measure(f"random {seed}", random_like(scrubbers["leace", "sequential"], seed), probe=False)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
