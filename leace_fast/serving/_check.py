"""Whether what a server serves is erased: its log-probabilities, beside those of the model with erasers and without."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from ..scrubbing import Scrubber
from ._asking import TOP, Server

LEAST = 1e-3  # of the erasers' effect on log-probabilities: less cannot be told from the rounding of a server
NEAR = 0.1  # of that effect: a server as near as that serves what it is near to
PROMPTS, TOKENS = 12, 24


@dataclass(frozen=True)
class Served:
    """What a server serves, by the farthest log-probability of some prompts.

    Attributes:
        to_erased: distance from the model with the erasers.
        to_clean: distance from the model without them.
        effect: distance between these two.
        prompts: that were asked.

    >>> print(Served(2e-5, 3.1, 3.1, 12))
    erased: 2e-05 from the erased model, 3.1 from the clean one (log-probabilities after 12 prompts)
    """

    to_erased: float
    to_clean: float
    effect: float
    prompts: int

    @property
    def verdict(self) -> str:
        """One of "erased", "un-erased" and "neither"."""
        if self.to_erased <= NEAR * self.effect:
            return "erased"
        return "un-erased" if self.to_clean <= NEAR * self.effect else "neither"

    def __str__(self) -> str:
        return (
            f"{self.verdict}: {self.to_erased:.2g} from the erased model, {self.to_clean:.2g} from the clean one "
            f"(log-probabilities after {self.prompts} prompts)"
        )


def check_served(
    server: Server, model: Any, scrubber: Scrubber, prompts: int = PROMPTS, folded: bool = False
) -> Served:
    """Ask a running server whether what it serves is erased.

    Of each prompt the highest log-probabilities of the next token are compared in order, whatever tokens they are of:
    no tokenizer and no names of tokens are needed.

    Args:
        server: that is asked, about one prompt after the other.
        model: the clean model of transformers that it serves.
        scrubber: the erasers that it should serve.
        prompts: how many, of 24 random tokens each.
        folded: whether it should serve the erasers folded into the weights, or as LoRA: maps without an offset, where
            the model has no biases for it.

    Raises:
        ValueError: the erasers change these log-probabilities too little to tell, the server gives none or refuses,
            or the erasers do not fit the model.
        ConnectionError: no server answers.

    Source: docs/serving-vllm.md.
    """
    if prompts < 1:
        raise ValueError(f"prompts is {prompts}, expected at least 1")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (prompts, TOKENS), generator=generator)
    clean = _tops(model, ids)
    with _folded(model, scrubber) if folded else scrubber.attached(model):
        erased = _tops(model, ids)
    effect = _distance(clean, erased)
    if effect < LEAST:
        raise ValueError(
            f"the erasers change these log-probabilities by {effect:.2g} at most, which cannot be told from rounding: "
            "ask after more prompts, or measure another way"
        )
    served = [server.top(prompt) for prompt in ids.tolist()]
    return Served(_distance(served, erased), _distance(served, clean), effect, prompts)


@contextmanager
def _folded(model: Any, scrubber: Scrubber) -> Iterator[None]:
    scrubber.fold_(model, max_cost_ratio=math.inf)  # what it costs was looked at as it was folded for the server
    try:
        yield
    finally:
        scrubber.unfold_(model)


def _tops(model: Any, ids: torch.Tensor) -> list[list[float]]:
    with torch.no_grad():
        last = [model(input_ids=row[None].to(model.device)).logits[0, -1] for row in ids]
    return [each.double().log_softmax(-1).topk(min(TOP, len(each))).values.tolist() for each in last]


def _distance(some: list[list[float]], others: list[list[float]]) -> float:
    """The farthest of the log-probabilities that stand at the same place, after all prompts."""
    return max(_apart(x, y) for x, y in zip(some, others, strict=True))


def _apart(some: list[float], others: list[float]) -> float:
    """How far two falling lists are apart; of the longer one, the entries count that fit the other best."""
    few, many = sorted((some, others), key=len)
    if not all(map(math.isfinite, few)):
        return math.inf
    return min(max(map(lambda a, b: abs(a - b), few, chosen)) for chosen in combinations(many, len(few)))
