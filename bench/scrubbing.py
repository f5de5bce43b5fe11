"""What scrubbing a concept costs, and what it leaves: methods and modes side by side on the demo's model.

    python bench/scrubbing.py bench/results/scrubbing.json

Writes the figures of docs/scrubbing.md: loss and divergence on held-out text, and probes inside the scrubbed model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from leace_fast import Scrubber, evaluate, random_like, scrub
from leace_fast.demo.run import load_demo, machine

CONDITIONS = (
    ("leace", "sequential"),
    ("orth", "sequential"),
    ("mean_projection", "sequential"),
    ("leace", "parallel"),
)
SEEDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    model, fit, held_out, (_, modules) = load_demo()
    text_bytes = sum(len(module.text.encode()) for module in modules)
    inputs = [{name: batch[name] for name in ("input_ids", "attention_mask", "concept_labels")} for batch in fit]
    found: dict[str, Any] = {}

    def measure(name: str, scrubber: Scrubber | None, seconds: float | None = None, probe: bool = True) -> None:
        result = evaluate(
            model, held_out, scrubber, text_bytes=text_bytes, probe=probe, probe_batches=inputs if probe else None
        )
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
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
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
