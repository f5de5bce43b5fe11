"""Rows that a model reorders before a site are refused for labels by token; those at their tokens are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leace_fast import scrub

WIDTH, VOCABULARY = 16, 64
Change = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


class Model(nn.Module):
    """Tokens that are looked up, changed, and run through layers of attention, then changed again."""

    def __init__(self, before: Change = same, ids: Change = same, after: Change = same, causal: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 24, 0.0, batch_first=True) for _ in range(2))
        self.norm, self.before, self.ids, self.after, self.causal = nn.LayerNorm(WIDTH), before, ids, after, causal

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.before(x if x.is_floating_point() else self.embed(self.ids(x)))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        return self.norm(self.after(x))


class Functional(Model):
    """The same, where no embedding is called."""

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(self.embed.weight[self.ids(x)])


def by_first_column(x: Tensor) -> Tensor:
    return x.gather(1, x[..., :1].argsort(1).expand_as(x))


def shuffled(x: Tensor) -> Tensor:
    return x[:, torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(3))]


MOVED: dict[str, dict[str, Change]] = {
    "flipped": {"before": lambda x: x.flip(1)},
    "flipped ids": {"ids": lambda x: x.flip(1)},
    "flipped behind": {"after": lambda x: x.flip(1)},
    "rolled": {"before": lambda x: x.roll(1, 1)},
    "rolled back": {"before": lambda x: x.roll(-3, 1)},
    "sorted by content": {"before": by_first_column},
    "sorted ids": {"ids": lambda x: x.sort(1)[0]},
    "shuffled": {"before": shuffled},
    "even ones first": {"before": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1)},
}
KEPT: dict[str, dict[str, Change]] = {
    "plain": {},
    "there and back": {"before": lambda x: x.flip(1).flip(1)},
    "mixed evenly": {"before": lambda x: x.cumsum(1).flip(1).cumsum(1).flip(1)},
    "a mean added": {"before": lambda x: x + x.mean(1, keepdim=True)},
    "shifted": {"before": lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)},
}


def data(shape: tuple[int, int], embedded: bool = False) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(2):
        ids = torch.randint(3, VOCABULARY, shape, generator=generator)
        x = torch.randn(*shape, WIDTH, generator=generator) if embedded else ids
        made.append({"x": x, "concept_labels": ids % 3})
    return made


def built(kind: Any = Model, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options).eval()


def cases() -> Iterator[Any]:
    for kind, causal, shape in product(MOVED, (True, False), ((6, 9), (8, 8), (1, 9))):
        yield pytest.param(kind, causal, shape, id=f"{kind} {'causal' if causal else 'both'} {shape[0]}x{shape[1]}")


@pytest.mark.parametrize(("kind", "causal", "shape"), cases())
def test_rows_in_another_order_are_refused(kind: str, causal: bool, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="'norm' gives rows in another order than the tokens"):
        scrub(built(**MOVED[kind], causal=causal), data(shape), "norm", mode="parallel")


@pytest.mark.parametrize("kind", [kind for kind, options in MOVED.items() if "ids" not in options])
def test_also_of_rows_that_come_embedded(kind: str) -> None:
    with pytest.raises(ValueError, match="another order than the tokens"):
        scrub(built(**MOVED[kind], causal=False), data((6, 9), True), "norm", mode="parallel")


def test_also_where_no_embedding_is_called() -> None:
    with pytest.raises(ValueError, match="another order than the tokens"):
        scrub(built(Functional, **MOVED["flipped ids"]), data((6, 9)), "norm", mode="parallel")


def test_padding_is_no_token() -> None:
    batches = data((6, 9))
    for batch in batches:
        batch["attention_mask"] = (torch.arange(9) < 6).long().expand(6, 9)
    with pytest.raises(ValueError, match="those of tokens 0, 2, 4 and 5 are 8, 6, 4 and 3"):
        scrub(built(**MOVED["flipped"]), batches, "norm", mode="parallel")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])
@pytest.mark.parametrize("kind", KEPT)
def test_rows_at_their_tokens_are_taken(kind: str, causal: bool) -> None:
    assert len(scrub(built(**KEPT[kind], causal=causal), data((8, 8)), "norm", mode="parallel")) == 1


def test_labels_of_sequences_need_no_order() -> None:
    batches = [{**batch, "concept_labels": torch.arange(6) % 2} for batch in data((6, 9))]
    assert len(scrub(built(**MOVED["flipped"]), batches, "norm", mode="parallel")) == 1
