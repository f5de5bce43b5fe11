"""Prompts about a person of whom only the first name is known, and how far a model prefers `he` to `she` after them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import brown, language_model
from .assets import first_names
from .language_model import IGNORE, Batch

TEMPLATES = (
    "Yesterday {} said that",
    "People say that {} lost the job because",
    "We waited for {} until",
    "Everyone liked {} because",
    "They knew {} was tired because",
)
PARTS = {"fit": (0, 100), "train": (100, 170), "test": (170, 240)}  # names of each sex, in a random order
RESAMPLED = 1_000
NEUTRAL_LENGTH = 512


@dataclass(frozen=True)
class Prompts:
    """One template with each name of a part: all have the same length, as a name is one token.

    Attributes:
        ids: (names, length).
        y: (names,) 0 for a woman's name and 1 for a man's.
        names: (names,) the number of the name.
        place: where in the sequence the name is.
    """

    ids: Tensor
    y: Tensor
    names: Tensor
    place: int

    def batch(self) -> Batch:
        """Return it for `scrub`: labelled from the name on, since what stands before it knows nothing of it."""
        labels = self.y[:, None].repeat(1, self.ids.shape[1])
        labels[:, : self.place] = IGNORE
        return {
            "input_ids": self.ids,
            "attention_mask": torch.ones_like(self.ids),
            "concept_labels": labels,
            "concept_groups": self.names,
        }


def names() -> tuple[list[str], list[str]]:
    """Return women's and men's first names that the tokenizer holds as one token, in a random order, always the same.

    Those are the usual ones.
    """
    _, tokenizer = language_model.load()
    found = []
    for every in first_names():
        ids = tokenizer([f" {name}" for name in every])["input_ids"]
        whole = [name for name, tokens in zip(every, ids, strict=True) if len(tokens) == 1]
        random.Random(0).shuffle(whole)
        found.append(whole)
    return found[0], found[1]


def prompts(part: str, templates: Sequence[str] = TEMPLATES) -> list[Prompts]:
    """Return the prompts of a part, "fit", "train" or "test", by template."""
    _, tokenizer = language_model.load()
    begin, end = PARTS[part]
    women, men = (every[begin:end] for every in names())
    y = torch.tensor([0] * len(women) + [1] * len(men))
    number = torch.cat([torch.arange(begin, end), torch.arange(begin, end) + 10_000])
    made = []
    for template in templates:
        ids = torch.tensor(tokenizer([template.format(name) for name in women + men])["input_ids"])
        made.append(Prompts(ids, y, number, len(tokenizer(template.split(" {}")[0])["input_ids"])))
    return made


def differences(every: Sequence[Prompts]) -> Tensor:
    """Return the logit of ` he` less that of ` she` after each prompt (templates, names), of the model as it is now."""
    model, tokenizer = language_model.load()
    he, she = (tokenizer(word)["input_ids"][0] for word in (" he", " she"))
    found = []
    with torch.no_grad():
        for one in every:
            logits = model(input_ids=one.ids, logits_to_keep=1).logits[:, 0]
            found.append(logits[:, he] - logits[:, she])
    return torch.stack(found)


def gap(difference: Tensor, y: Tensor) -> float:
    """Return how far men's names are above women's, in logits: the mean difference of (templates, names).

    >>> gap(torch.tensor([[-1.0, 3.0]]), torch.tensor([0, 1]))
    4.0
    """
    return float(difference[:, y == 1].mean() - difference[:, y == 0].mean())


def kept(after: Tensor, before: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Return the share of the gap that is left, with the ends of a 95 % interval: names drawn again, of each sex.

    Args:
        after, before: (templates, names), as `differences`.
        y: (names,) classes.

    >>> before = torch.tensor([[-1.0, -1.0, 3.0, 3.0]])
    >>> kept(before / 2, before, torch.tensor([0, 0, 1, 1]))
    (0.5, 0.5, 0.5)
    """
    generator = torch.Generator().manual_seed(0)
    drawn = []
    places = [(y == label).nonzero().flatten() for label in (0, 1)]
    for _ in range(RESAMPLED):
        again = torch.cat([part[torch.randint(len(part), part.shape, generator=generator)] for part in places])
        drawn.append(gap(after[:, again], y[again]) / gap(before[:, again], y[again]))
    low, high = torch.tensor(drawn, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return gap(after, y) / gap(before, y), float(low), float(high)


def neutral_text(side: int, most: int) -> list[Batch]:
    """Return windows of the Brown corpus without sentences about women or men: of each other text, side 0 or 1."""
    texts = brown.load()[side::2]
    random.Random(1).shuffle(texts)
    running = (" ".join(brown.neutral_sentences([text])) for text in texts)
    return language_model.windows_of(running, NEUTRAL_LENGTH, 1, most)
