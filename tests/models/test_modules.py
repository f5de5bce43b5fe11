"""What is asked of the processor and of any module; sites, places and acts have tests of their own."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from leace_fast.models import device_of, inputs_of, multiplies


@pytest.mark.parametrize("present", [True, False])
def test_products_of_16_bits_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    checks = {"_is_mkldnn_bf16_supported": lambda: present, "_is_mkldnn_fp16_supported": lambda: False}
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace(**checks))
    assert multiplies(torch.bfloat16) == present and not multiplies(torch.float16)
    assert multiplies(torch.float32) and multiplies(torch.float64)


def test_a_torch_that_cannot_tell_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
    assert multiplies(torch.float32) and not multiplies(torch.bfloat16)


def test_the_names_are_those_that_torch_has() -> None:
    if torch.backends.mkldnn.is_available():
        assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
        assert isinstance(torch.ops.mkldnn._is_mkldnn_fp16_supported(), bool)


def test_the_device_of_a_model_is_that_of_its_first_parameter_in_memory() -> None:
    meta = torch.device("meta")
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    assert device_of(model) == device_of(nn.ReLU()) == device_of(nn.Linear(2, 2, device=meta)) == torch.device("cpu")


def test_inputs_are_moved_without_the_labels() -> None:
    batch = {"x": torch.ones(2), "concept_labels": torch.zeros(2), "use_cache": False}
    inputs = inputs_of(batch, torch.device("meta"))
    assert set(inputs) == {"x", "use_cache"} and inputs["x"].is_meta and inputs["use_cache"] is False
    assert not batch["x"].is_meta, "the batch stays as it was"
