"""`record` where kernels take the rows: what is no label and no mask is met by the next read, nothing is looked at."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from laws import within
from torch import nn

from leace_fast import record
from leace_fast.statistics import device


@pytest.fixture(autouse=True)
def kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DEVICES", ["cpu"])


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
    assert found._on_device is not None and found.class_counts.tolist() == [4 + 5, 4 + 5]
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
