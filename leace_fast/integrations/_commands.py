"""`lora_commands`: how each stack is told to serve an adapter that was exported."""

from __future__ import annotations

import shlex

from ..folding import LoraReport

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank may be


def lora_commands(report: LoraReport, base_model: str, lora_bias: bool = False) -> dict[str, str]:
    """Return, by the name of a stack, what serves an adapter: a command, or why it cannot.

    Args:
        report: of `export_lora`.
        base_model: name or folder of the model that the adapter is for.
        lora_bias: whether it has biases.

    >>> from pathlib import Path
    >>> report = LoraReport(Path("adapter"), 10, ("q_proj",), 0.0, 0.0, {"norm": 1.0}, 0.0, 0.0, ())
    >>> lora_commands(report, "org/model")["vLLM"]
    'vllm serve org/model --enable-lora --lora-modules erased=adapter --max-lora-rank 16'
    """
    model, folder = shlex.quote(base_model), shlex.quote(str(report.folder))
    peft = f"PeftModel.from_pretrained(model, {str(report.folder)!r})"
    if lora_bias:
        refused = "refuses a LoRA with biases: export without --lora-bias, or fold with --add-bias"
        return {"vLLM": refused, "llama.cpp": refused, "PEFT": peft}
    rank = next((each for each in VLLM_RANKS if each >= report.rank), None)
    return {
        "vLLM": f"vllm serve {model} --enable-lora --lora-modules erased={folder} --max-lora-rank {rank}"
        if rank
        else f"takes ranks up to {VLLM_RANKS[-1]}, this is {report.rank}: fold instead",
        "llama.cpp": f"leace-fast gguf {model} --adapter {folder} --out lora.gguf, then llama-server --lora lora.gguf",
        "PEFT": peft,
    }
