"""What `lora_commands` says of an adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from leace_fast import LoraReport
from leace_fast.integrations import lora_commands

REPORT = LoraReport(Path("an adapter"), 10, ("q_proj",), 0.0, 0.0, {"norm": 1.0}, 0.0, 0.0, ())


@pytest.mark.parametrize(("rank", "flag"), [(1, 8), (8, 8), (9, 16), (33, 64), (300, 320), (512, 512)])
def test_the_least_rank_that_vllm_takes(rank: int, flag: int) -> None:
    assert lora_commands(replace(REPORT, rank=rank), "org/model")["vLLM"].endswith(f"--max-lora-rank {flag}")


def test_what_cannot_be_served_is_said() -> None:
    assert "takes ranks up to 512, this is 600: fold" in lora_commands(replace(REPORT, rank=600), "org/model")["vLLM"]
    with_bias = lora_commands(REPORT, "org/model", lora_bias=True)
    assert all("refuses a LoRA with biases" in with_bias[stack] for stack in ("vLLM", "llama.cpp"))
    assert "an adapter" in with_bias["PEFT"]


def test_names_are_quoted_for_a_shell() -> None:
    said = lora_commands(REPORT, "/models/my model")
    assert "serve '/models/my model' " in said["vLLM"] and "erased='an adapter'" in said["vLLM"]
    assert "--adapter 'an adapter'" in said["llama.cpp"]
