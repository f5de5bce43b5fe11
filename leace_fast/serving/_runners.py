"""The model runners of vLLM that erasers are served with, each in a file of its own, and the versions tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._runner_v1 import READY
from ._runner_v1 import take_over as take_over_v1
from ._settings import Settings

TESTED = ("0.32.0",)
__all__ = ["READY", "RUNNERS", "TESTED", "runner_of"]

# Each is given a worker before it loads its model: from then on its model is erased, or does not start. Once its model
# has run erased, the worker has a method of the name READY, which returns the settings as text.
RUNNERS: dict[str, Callable[[Any, Settings], None]] = {"V1": take_over_v1}


def runner_of(config: Any) -> str:
    """Return which model runner a configuration of vLLM takes; ValueError for what was not tested with erasers.

    Args:
        config: vLLM's.
    """
    parallel = config.parallel_config
    refused = {
        "model runner V2 (set VLLM_USE_V2_MODEL_RUNNER=0)": config.use_v2_model_runner,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "microbatches": getattr(parallel, "use_ubatching", False),
        "sequence parallelism": bool(getattr(config.compilation_config.pass_config, "enable_sp", False)),
        "speculative decoding": config.speculative_config is not None,
        "fast prefill with a shared KV cache": config.cache_config.kv_sharing_fast_prefill,
    }
    for name, asked in refused.items():
        if asked:
            raise ValueError(f"leace_fast: {name} was not tested with erasers; leave it off, or fold the erasers")
    return "V1"
