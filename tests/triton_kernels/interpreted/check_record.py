"""`record` where kernels take the rows: what is no label and no mask is met by the next read, nothing is looked at."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from laws import assert_same_bits, settled_bits, within
from torch import nn

from leace_fast import Moments, record
from leace_fast.statistics import _kernels
from leace_fast.triton_kernels import configs


@pytest.fixture(autouse=True)
def kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "DEVICES", ["cpu"])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.block = nn.Sequential(self.norm, nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.block(x))


def check_tokens_and_sequences_with_masks() -> None:
    model, x = Model(), torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    labels = torch.tensor([[0, 1, -100, 1, 0]] * 3)
    with (
        record(model, ["norm"], num_classes=2) as moments,
        torch.no_grad(),
        patch("torch.Tensor.cpu", side_effect=AssertionError),
    ):
        model(x, attention_mask=mask, concept_labels=labels)
        model(x, attention_mask=mask, concept_labels=torch.tensor([0, 1, 1]))
    found = moments["norm"]
    assert found._sums.on_device is not None and found.class_counts.tolist() == [4 + 5, 4 + 5]
    rows = nn.functional.layer_norm(x, (4,), model.norm.weight, model.norm.bias).double()
    kept = [(rows[(mask == 1) & (labels == j)], rows[part][mask[part] == 1]) for j, part in ((0, [0]), (1, [1, 2]))]
    for j, parts in enumerate(kept):
        within(found.class_means[j] - torch.cat(parts).mean(0), 1e-6, "class mean")


def check_mistakes_are_met_by_the_next_read() -> None:
    model, x = Model(), torch.randn(1, 3, 4)
    with record(model, ["norm"], num_classes=2) as moments, torch.no_grad():
        mask = torch.tensor([[1, 2, 1]])
        model(x, attention_mask=mask, concept_labels=torch.tensor([[0, 1, 5]]))
    with pytest.raises(ValueError, match="1 had a label out of range, .*; 1 had a mask other than 0 and 1"):
        moments["norm"].mean.tolist()


def check_kinds_are_still_refused_before_the_model_runs() -> None:
    model = Model()
    with record(model, ["norm"], num_classes=2), pytest.raises(TypeError, match="expected integer labels"):
        model(torch.randn(1, 3, 4), concept_labels=torch.zeros(1, 3))
    with record(model, ["norm"], num_classes=2) as moments:
        model(torch.randn(1, 3, 4), concept_labels=torch.zeros(1, 3).long())
    assert moments


def sites_of(model: Model, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(x, (4,), model.norm.weight, model.norm.bias)


@pytest.mark.slow
def check_blocks_fill_across_passes_and_a_pass_that_fails_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short and long batches: the same bits as rows added by hand; what follows the site may change it in place."""
    monkeypatch.setattr(configs, "block_rows", lambda dim: 40)
    model, by_hand = Model(), Moments(4, 2)
    labels = torch.arange(100)[None] % 2
    model.norm.register_forward_hook(lambda _module, _inputs, output: output.mul_(2))
    with record(model, ["norm"], num_classes=2) as moments, torch.no_grad():
        for rows in (30, 95, 9):
            x = torch.randn(1, rows, 4)
            model(x, concept_labels=labels[:, :rows])
            by_hand.update(sites_of(model, x), labels[:, :rows])
            model.head.forward = None  # type: ignore[assignment]
            with pytest.raises(TypeError):
                model(torch.randn(1, 50, 4), concept_labels=labels[:, :50])
            if rows == 95:
                assert moments["norm"].count == by_hand.count == 125  # between a pass that failed and the next
            del model.head.forward
    assert moments["norm"].count == 134
    assert_same_bits(settled_bits(moments["norm"]), settled_bits(by_hand))


def check_a_first_pass_that_fails_leaves_nothing() -> None:
    model, x, y = Model(), torch.randn(1, 3, 4), torch.tensor([[0, 1, 0]])
    with record(model, ["norm"], num_classes=2) as moments, torch.no_grad():
        model(x, concept_labels=y)
        moments.clear()
        model.head.forward = None  # type: ignore[assignment]
        with pytest.raises(TypeError):
            model(x, concept_labels=y)
        assert not moments
        del model.head.forward
        model(x, concept_labels=y)
    assert moments["norm"].count == 3
