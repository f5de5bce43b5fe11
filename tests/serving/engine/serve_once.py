"""One engine of vLLM in this process: batches in, tokens and log-probabilities out, as JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def mutate(name: str) -> None:
    """Break one thing, to see that it is noticed."""
    import leace_fast.serving._plugin as plugin
    import leace_fast.serving._runner_v1 as runner

    if name == "no salt":
        plugin.salted = lambda settings, choice, salt: salt
    elif name == "no hook":
        placed = runner.Placed

        class Dropped(placed):
            def __init__(self, model: Any, *rest: Any) -> None:
                super().__init__(model, *rest)
                model.get_submodule("model.layers.1.input_layernorm")._forward_hooks.clear()

        runner.Placed = Dropped
    elif name == "no worker":
        plugin.RUNNERS["V1"] = lambda worker, settings: None
    elif name == "no engine":
        plugin.ROW = "another"
    elif name == "another version":
        plugin.version = lambda: "0.1.2"
    elif name:
        raise ValueError(name)


def main() -> None:
    work = json.loads(sys.argv[1])
    vllm: Any = importlib.import_module("vllm")
    mutate(work.get("mutation", ""))
    additional = {"leace_fast": work["settings"]} if work.get("settings") else {}
    options = {"max_model_len": 400, "max_num_batched_tokens": 1024, "max_num_seqs": 64, "kv_cache_memory_bytes": 2**26}
    llm = vllm.LLM(
        work["model"], dtype="float32", enforce_eager=work["eager"], seed=0, additional_config=additional, **options
    )
    results = []
    for batch in work["batches"]:
        asked = [
            vllm.SamplingParams(temperature=0, max_tokens=6, logprobs=5, ignore_eos=True, extra_args=choice or None)
            for _, choice in batch
        ]
        for answer in llm.generate([{"prompt_token_ids": ids} for ids, _ in batch], asked, use_tqdm=False):
            (out,) = answer.outputs
            tops = [{str(token): each.logprob for token, each in top.items()} for top in out.logprobs]
            results.append([list(out.token_ids), tops])
    print("RESULT " + json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
