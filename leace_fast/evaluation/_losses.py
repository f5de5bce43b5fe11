"""A language model's loss: summed nats, and bits for each byte of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 512  # logits that are turned into float32 at a time


@torch.no_grad()
def batch_nats(model: PreTrainedModel, batch: dict[str, Tensor]) -> float:
    """Return the summed cross-entropy, in nats, of the tokens of one batch that `labels` names."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = batch["labels"][:, 1:]
    kept = targets != -100
    nats = torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits[:, :-1][kept].split(ROWS), targets[kept].split(ROWS), strict=True):
        nats += torch.nn.functional.cross_entropy(row.float(), target, reduction="sum").cpu()
    return float(nats)


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Return summed nats over a text as bits for each byte of its UTF-8 form."""
    return nats / math.log(2) / text_bytes
