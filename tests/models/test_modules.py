"""What is asked of the processor and of any module; sites, places and acts have tests of their own."""

from __future__ import annotations

import types

import pytest
import torch

from leace_fast.models import multiplies


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
