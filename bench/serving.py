"""What erasing costs in vLLM: clean, plugin and folded engines in one process, in turns, beside a second clean one.

    sh .ci/serving.sh python ../../../bench/serving.py [--compiled] [--turns N] [--out FILE]

One thread. Figures are milliseconds a step of decoding at batches of 1, 8 and 32, of which the medians over turns are
taken; the second clean engine shows what two engines that are alike differ by.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

import torch  # noqa: E402

import leace_fast as lf  # noqa: E402
from leace_fast.serving import digest_of_folder  # noqa: E402

VOCABULARY, STEPS = 4096, 16
BATCHES = (1, 8, 32)


def prepare(folder: Path) -> None:
    """Write a Llama of 8 layers, 512 wide, erasers of rank 4 for its 16 norms, and the folded model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: Any = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=4, max_position_embeddings=512, **sizes)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "model")
    ids = [torch.randint(VOCABULARY, (8, 128)) for _ in range(4)]
    scrubber = lf.scrub(model, [{"input_ids": each, "concept_labels": each % 5} for each in ids])
    scrubber.save_pretrained(folder / "erasers")
    scrubber.fold_(model, max_cost_ratio=100.0, keep_originals=False)
    model.save_pretrained(folder / "folded")


def engine(folder: Path, model: str, settings: Any, eager: bool) -> Any:
    """An engine of vLLM in this process."""
    vllm: Any = importlib.import_module("vllm")
    return vllm.LLM(
        str(folder / model),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=eager,
        max_model_len=256,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
        kv_cache_memory_bytes=2**28,
        enable_prefix_caching=False,
        seed=0,
        additional_config={"leace_fast": settings} if settings else {},
    )


def milliseconds(llm: Any, batch: int, choice: dict[str, Any] | None) -> float:
    """Time one batch, and return what a step of it took."""
    vllm: Any = importlib.import_module("vllm")
    params = vllm.SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, detokenize=False, extra_args=choice)
    prompts = [{"prompt_token_ids": [(7 * i + 3) % VOCABULARY] * 4} for i in range(batch)]
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return (time.perf_counter() - begin) / STEPS * 1e3


def measure(folder: Path, eager: bool, turns: int) -> dict[str, Any]:
    """Medians by batch and engine, the spread of each, and how the medians of pairs differ from the clean engine's."""
    entry = {"path": str(folder / "erasers"), "digest": digest_of_folder(folder / "erasers")}
    engines: dict[str, tuple[Any, dict[str, Any] | None]] = {
        "clean": (engine(folder, "model", None, eager), None),
        "clean again": (engine(folder, "model", None, eager), None),
        "plugin": (engine(folder, "model", entry, eager), None),
        "plugin by request": (
            engine(folder, "model", {"erasers": {"one": entry}, "default": "none"}, eager),
            {"leace_fast": "one"},
        ),
        "folded": (engine(folder, "folded", None, eager), None),
    }
    found: dict[str, Any] = {}
    for batch in BATCHES:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(turns + 1):
            for name in random.sample([*engines], len(engines)):
                took = milliseconds(engines[name][0], batch, engines[name][1])
                if turn:  # the first warms up
                    times[name].append(took)
        clean = times["clean"]
        rows = found[str(batch)] = {
            name: {
                "median_ms": statistics.median(values),
                "least_ms": min(values),
                "over_clean_percent": 100 * statistics.median(a / b - 1 for a, b in zip(values, clean, strict=True)),
            }
            for name, values in times.items()
        }
        for name, row in rows.items():
            told = f"{row['median_ms']:7.2f} ms, least {row['least_ms']:7.2f}  {row['over_clean_percent']:+6.1f} %"
            print(f"batch {batch:>2}  {name:18} {told}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true", help="compile, as vLLM does by default")
    parser.add_argument("--turns", type=int, default=15, help="times that each engine is measured at a batch")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found = measure(Path(folder), not arguments.compiled, arguments.turns)
    versions = {name: importlib.import_module(name).__version__ for name in ("vllm", "torch", "leace_fast")}
    if arguments.out:
        what = {"versions": versions, "compiled": arguments.compiled, "turns": arguments.turns, "batches": found}
        arguments.out.write_text(json.dumps(what, indent=1) + "\n")
    sys.stdout.flush()
    os._exit(0)  # several engines in one process do not all end by themselves


if __name__ == "__main__":
    main()
