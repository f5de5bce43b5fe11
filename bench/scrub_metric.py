"""What it costs to measure least change on all rows: `scrub(metric="all")` beside `metric="labelled"`.

    python bench/scrub_metric.py bench/results/scrub_metric.json

Each run has a process of its own, for its peak of memory, and one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from demo_text import load_text
from torch import Tensor

from leace_fast import scrub
from leace_fast.demo import machine

METRICS = ("labelled", "all")
MODES = ("sequential", "parallel")
# (model, one token in so many keeps its label): the demo's, and random weights of a width at which moments weigh.
CASES = (("demo", 16), ("wide", 16))
WIDTH, LAYERS, TOKENS, BATCHES = 1024, 2, (4, 256), 12
REPEATS = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--one", nargs=4, metavar=("MODEL", "EVERY", "MODE", "METRIC"), help="one run, printed")
    options = parser.parse_args()
    if options.one:
        name, every, mode, metric = options.one
        print(json.dumps(measured(name, int(every), mode, metric)))
        return
    found: list[dict[str, Any]] = []
    for name, every in CASES:
        for mode in MODES:
            runs: dict[str, list[dict[str, Any]]] = {metric: [] for metric in METRICS}
            for _ in range(REPEATS):
                for metric in METRICS:
                    runs[metric].append(child(options.out, name, every, mode, metric))
                    print(name, mode, metric, runs[metric][-1], flush=True)
            for metric, each in runs.items():
                found.append(summary(name, mode, metric, each))
            options.out.write_text(
                json.dumps({"machine": machine(), "cases": found}, indent=1) + "\n", encoding="utf-8"
            )


def child(out: Path, *case: Any) -> dict[str, Any]:
    """Return what one run in a process of its own measures."""
    command = [sys.executable, __file__, str(out), "--one", *map(str, case)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def summary(name: str, mode: str, metric: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one line of the results."""
    return {
        "model": name,
        "labelled": runs[0]["labelled"],
        "rows": runs[0]["rows"],
        "mode": mode,
        "metric": metric,
        "seconds": min(run["seconds"] for run in runs),
        "mebibytes": statistics.median(run["mebibytes"] for run in runs),
    }


def measured(name: str, every: int, mode: str, metric: str) -> dict[str, Any]:
    """Scrub once, and return processor time in seconds and added memory in MiB."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    text = load_text() if name == "demo" else None
    model, batches = wide() if text is None else (text.model, text.batches(text.fit))
    batches = [thinned(batch, every) for batch in batches]
    model(**{key: value[:1] for key, value in batches[0].items() if key in ("input_ids", "attention_mask")})
    before, begin = peak(), time.process_time()
    scrub(model, batches, mode=mode, metric=metric)  # type: ignore[arg-type]
    seconds, after = time.process_time() - begin, peak()
    return {
        "seconds": seconds,
        "mebibytes": after - before,
        "labelled": sum(int((batch["concept_labels"] != -100).sum()) for batch in batches),
        "rows": sum(int(batch["attention_mask"].sum()) for batch in batches),
    }


def thinned(batch: dict[str, Tensor], every: int) -> dict[str, Tensor]:
    """Return a batch without the tokens to predict, in which one token in so many keeps its label."""
    labels = batch["concept_labels"]
    kept = torch.arange(labels.shape[1]) % every == every // 2
    names = ("input_ids", "attention_mask")
    return {**{key: batch[key] for key in names}, "concept_labels": torch.where(kept, labels, -100)}


def wide() -> tuple[Any, list[dict[str, Tensor]]]:
    """Return a wide Llama with random weights, and batches of random tokens with two classes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        use_cache=False,
    )
    ids = torch.randint(512, (BATCHES, *TOKENS))
    batches = [{"input_ids": each, "attention_mask": torch.ones_like(each), "concept_labels": each % 2} for each in ids]
    return LlamaForCausalLM(config).eval(), batches


def peak() -> float:
    """Return the most memory that the process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
