"""A language model's losses: nats of the tokens that are scored, divergence from another model, bits for each byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss

from ..models import MASK, unwrapped
from ..statistics import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 512  # tokens whose logits are turned into float32 at a time, fewer of a large vocabulary
BYTES = 2**25  # of these logits

Head = Callable[[Tensor], Tensor]


def summed_losses(logits: Tensor, targets: Tensor, clean: Tensor | None = None, head: Head | None = None) -> Tensor:
    """Return the summed nats, the summed divergence from clean logits in nats, and the number of scored tokens.

    Args:
        logits: (..., vocabulary), any floating dtype; computed in float32 and summed in float64.
        targets: (...) int64, the token that each place predicts, -100 where it is not scored.
        clean: (..., vocabulary), what another model predicts there; without it, the divergence is 0.
        head: makes logits of rows; then hidden states (..., dim) came in the place of both.

    Returns:
        (3,) float64 on the CPU.

    >>> summed_losses(torch.zeros(1, 3, 4), torch.tensor([[1, 2, -100]])).tolist()
    [2.772588..., 0.0, 2.0]
    """
    sums, targets = torch.zeros(3, dtype=torch.float64), targets.to(logits.device)
    kept = (targets != IGNORE).nonzero(as_tuple=True)
    make = head or (lambda rows: rows)
    width = make(logits[tuple(axis[:1] for axis in kept)]).shape[-1]
    rows = max(1, min(ROWS, BYTES // (4 * width)))
    for places in zip(*(axis.split(rows) for axis in kept), strict=True):
        found = log_softmax(make(logits[places]).float(), -1)
        wanted = targets[places].to(found.device)
        sums[0] += nll_loss(found, wanted, reduction="sum").double().cpu()
        if clean is not None:
            true = log_softmax(make(clean[places]).float(), -1)
            sums[1] += (true.exp() * (true - found)).sum(dtype=torch.float64).cpu()
        sums[2] += len(wanted)
    return sums


def next_token_losses(logits: Tensor, tokens: Tensor, clean: Tensor | None = None, head: Head | None = None) -> Tensor:
    """Return `summed_losses` where each place of logits (batch, length, vocabulary) predicts the token behind it."""
    return summed_losses(logits[:, :-1], tokens[:, 1:], None if clean is None else clean[:, :-1], head)


def batch_losses(
    model: nn.Module,
    batch: Mapping[str, Any],
    logits: Tensor | None,
    clean: Tensor | None = None,
    head: Head | None = None,
) -> Tensor:
    """Return `summed_losses` of a model's logits on a batch, all 0 where it predicts no token.

    Scored are the tokens that `labels` names or, for a causal model without them, those of `attention_mask`.
    """
    targets = _targets(model, batch)
    if targets is None or logits is None or logits.shape[:-1] != targets.shape:
        return torch.zeros(3, dtype=torch.float64)
    losses = next_token_losses if is_causal(model) else summed_losses
    return losses(logits, targets, clean, head)


@torch.no_grad()
def batch_nats(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> float:
    """Return the summed cross-entropy, in nats, of the tokens of one batch that `labels` names."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return next_token_losses(logits, batch["labels"])[0].item()


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Return summed nats over a text as bits for each byte of its UTF-8 form."""
    return nats / math.log(2) / text_bytes


def logits_of(output: Any) -> Tensor | None:
    """Return the logits in what a model returned: by that name, or the first of a tuple with three axes; else None.

    >>> logits_of({"logits": torch.zeros(1, 2, 3)}).shape, logits_of((torch.zeros(1, 2, 3),)).shape, logits_of(None)
    (torch.Size([1, 2, 3]), torch.Size([1, 2, 3]), None)
    """
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and type(output) is tuple:
        found = next((part for part in output if isinstance(part, Tensor) and part.ndim == 3), None)
    return found if isinstance(found, Tensor) else None


def is_causal(model: Any) -> bool:
    """Whether a model predicts the next token: its type says so, or it generates and has no encoder."""
    model = unwrapped(model)
    if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return True
    config, can_generate = getattr(model, "config", None), getattr(model, "can_generate", None)
    return callable(can_generate) and bool(can_generate()) and not getattr(config, "is_encoder_decoder", False)


def _targets(model: nn.Module, batch: Mapping[str, Any]) -> Tensor | None:
    if isinstance(batch.get("labels"), Tensor):
        return batch["labels"]
    ids, mask = batch.get("input_ids"), batch.get(MASK)
    if ids is None or not is_causal(model):
        return None
    return ids if mask is None else ids.masked_fill(mask == 0, IGNORE)
