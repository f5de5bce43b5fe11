"""Rows of a site are (batch, ..., width): told by passes on more and on shorter sequences, whatever the shapes are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from leace_fast import evaluate, find_sites, record, scrub
from leace_fast.models import Site, resolve_sites
from leace_fast.models._axes import check_axes

WIDTH = 8


class Around(nn.Module):
    """Something done to (batch, length, width), a linear layer, and that undone."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.before, self.after = nn.Linear(WIDTH, WIDTH), before, after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.layer(self.before(x)), x)


class Last(nn.Module):
    """A module whose output (batch, width, length) has time as its last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.layer = nn.Linear(WIDTH, WIDTH), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.inner(x).transpose(1, 2)).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.cell, self.layer = nn.GRU(WIDTH, WIDTH, batch_first=batch_first), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.cell(x)[0])


class Attends(nn.Module):
    def __init__(self, batch_first: bool, causal: bool = False, turned: bool = False) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.causal, self.turned = causal, turned

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.turned else x
        length = x.shape[1 if self.layer.batch_first else 0]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        x = self.layer(x, x, x, attn_mask=mask, need_weights=False)[0]
        return x.transpose(0, 1) if self.turned else x


def by_turns(x: Tensor) -> Tensor:
    return x.transpose(0, 1).reshape(-1, WIDTH)


def turned_back(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(x.shape[1], x.shape[0], WIDTH).transpose(0, 1)


def windows(x: Tensor) -> Tensor:
    return x.reshape(-1, 2, WIDTH) if x.shape[1] % 2 == 0 else x


WRONG: dict[str, Callable[[], nn.Module]] = {
    "time-major inside": lambda: Around(lambda x: x.transpose(0, 1), lambda y, x: y.transpose(0, 1)),
    "flattened by turns": lambda: Around(by_turns, turned_back),
    "time last": Last,
    "a recurrence over time-major inputs": lambda: Recurrent(False),
    "attention over time-major inputs": lambda: Attends(False),
    "causal attention over time-major inputs": lambda: Attends(False, causal=True),
    "attention that turns inside": lambda: Attends(False, turned=True),
    "a convolution": lambda: nn.Sequential(nn.Identity()).append(nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
}
RIGHT: dict[str, Callable[[], nn.Module]] = {
    "batch first": lambda: Around(lambda x: x, lambda y, x: y),
    "flattened": lambda: Around(lambda x: x.reshape(-1, WIDTH), lambda y, x: y.reshape(x.shape)),
    "windows in the batch": lambda: Around(windows, lambda y, x: y.reshape(x.shape)),
    "a recurrence": lambda: Recurrent(True),
    "attention": lambda: Attends(True),
    "causal attention": lambda: Attends(True, causal=True),
    "batch statistics": lambda: Around(lambda x: x - x.mean((0, 1)), lambda y, x: y),
    "random": lambda: Around(lambda x: x + torch.randn_like(x), lambda y, x: y),
}
SQUARE, OBLONG, ONE = (8, 8), (6, 4), (1, 8)


def name_of(model: nn.Module) -> str:
    return "1" if isinstance(model, nn.Sequential) else "layer"


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def rows(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def batches(shape: tuple[int, int], by_token: bool, count: int = 4) -> list[dict[str, Tensor]]:
    labels = torch.arange(shape[0]) % 2 if not by_token else torch.arange(shape[0] * shape[1]).reshape(shape) % 2
    key = "x"
    return [{key: rows(shape, seed), "concept_labels": labels} for seed in range(count)]


@pytest.mark.parametrize("shape", [SQUARE, OBLONG], ids=["square", "oblong"])
@pytest.mark.parametrize("kind", WRONG)
def test_other_orders_are_refused_by_name(kind: str, shape: tuple[int, int]) -> None:
    model = built(WRONG[kind])
    if kind == "a convolution":
        shape = (shape[0], WIDTH)
    with pytest.raises(ValueError, match=rf"'{name_of(model)}'.*(expected \(batch, ..., width\))"):
        check_axes(model, rows(shape), [name_of(model)])


@pytest.mark.parametrize("shape", [SQUARE, OBLONG, ONE], ids=["square", "oblong", "one"])
@pytest.mark.parametrize("kind", RIGHT)
def test_the_right_order_is_taken(kind: str, shape: tuple[int, int]) -> None:
    model = built(RIGHT[kind])
    state, given = torch.get_rng_state(), rows(shape)
    check_axes(model, given, ["layer"], by_token=True)
    assert torch.equal(given, rows(shape)) and torch.equal(torch.get_rng_state(), state)
    assert not model._forward_hooks and not model.layer._forward_hooks  # type: ignore[union-attr]


def scrubbed(model: nn.Module, data: list[dict[str, Tensor]], mode: Any) -> None:
    scrub(model, data, name_of(model), mode=mode)


def recorded(model: nn.Module, data: list[dict[str, Tensor]]) -> None:
    with record(model, name_of(model), num_classes=2), torch.no_grad():
        model(**data[0])


USES: dict[str, Callable[..., Any]] = {
    "sequential": lambda model, data: scrubbed(model, data, "sequential"),
    "parallel": lambda model, data: scrubbed(model, data, "parallel"),
    "known sites": lambda model, data: scrub(model, data, [Site(name_of(model), WIDTH)]),
    "record": recorded,
    "evaluate": lambda model, data: evaluate(model, data, sites=name_of(model)),
}


@pytest.mark.parametrize("by_token", [True, False], ids=["labels of tokens", "labels of sequences"])
@pytest.mark.parametrize(
    "kind", ["time-major inside", "flattened by turns", "time last", "attention that turns inside"]
)
@pytest.mark.parametrize("use", USES)
def test_all_that_fits_labels_to_rows_refuses_them(use: str, kind: str, by_token: bool) -> None:
    with pytest.raises(ValueError, match=r"'layer'.*expected \(batch, ..., width\)"):
        USES[use](built(WRONG[kind]), batches(SQUARE, by_token))


@pytest.mark.parametrize("shape", [(2, 2), (8, 2), (3, 3), (2, 3)])
@pytest.mark.parametrize("kind", ["time-major inside", "flattened by turns", "attention that turns inside"])
def test_also_of_two_or_three_tokens(kind: str, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"'layer'.*expected \(batch, ..., width\)"):
        scrub(built(WRONG[kind]), batches(shape, True), "layer")


@pytest.mark.parametrize("use", USES)
def test_and_takes_the_right_order(use: str) -> None:
    USES[use](built(RIGHT["attention"]), batches(SQUARE, True))


class Latents(nn.Module):
    """As many rows as there are latents, whatever the length."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.latents, self.layer = nn.Parameter(torch.randn(count, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((self.latents @ x.transpose(1, 2)).softmax(-1) @ x)


def test_rows_that_are_no_tokens_take_labels_of_sequences_alone() -> None:
    model = Latents(SQUARE[1])
    resolve_sites(model, rows(SQUARE), "layer")
    with pytest.raises(ValueError, match="its rows are not the tokens"):
        resolve_sites(model, rows(SQUARE), "layer", by_token=True)
    with pytest.raises(ValueError, match="its rows are not the tokens"):
        scrub(model, batches(SQUARE, True), "layer")
    assert len(scrub(model, batches(SQUARE, False), "layer")) == 1


def test_what_is_the_same_for_every_batch_has_no_rows_of_sequences() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.positions = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(SQUARE[1], WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(self.positions)

    with pytest.raises(ValueError, match="gives .* for 2 and .* for 3 sequences"):
        scrub(Positions(), batches(SQUARE, False), "layer")


class Whole(nn.Module):
    """Takes no other batch than this one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[:2]) != SQUARE:
            raise RuntimeError("another shape")
        return self.layer(x)


def test_where_nothing_can_be_cut_nothing_is_refused() -> None:
    assert len(scrub(Whole(), batches(SQUARE, True), "layer")) == 1
    check_axes(Whole(), {}, ["layer"])
    check_axes(Whole(), {"x": [rows(SQUARE)]}, ["layer"])


CHANNELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "1d": (lambda: nn.Sequential(nn.Conv1d(8, 8, 3, padding=1)), (2, 8, 8), "0"),
    "2d": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), (2, 3, 8, 8), "0"),
    "3d": (lambda: nn.Sequential(nn.Conv3d(1, 8, 3, padding=1)), (2, 1, 4, 4, 8), "0"),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(8, 8, 3, padding=1)), (2, 8, 8), "0"),
    "with batch norm": (lambda: nn.Sequential(nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)), (2, 8, 8), "1"),
    "with group norm": (lambda: nn.Sequential(nn.Conv1d(8, 8, 1), nn.GroupNorm(2, 8)), (2, 8, 8), "1"),
    "activated": (lambda: nn.Sequential(nn.Conv1d(8, 8, 1), nn.GELU()), (2, 8, 8), "1"),
    "pooled": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.MaxPool2d(2)), (2, 3, 16, 16), "1"),
    "one dimension left": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2)), (2, 3, 4, 2), "1"),
    "with a fixed head": (
        lambda: nn.Sequential(nn.Conv1d(8, 8, 1), nn.Flatten(), nn.Linear(64, 2)),
        (2, 8, 8),
        "0",
    ),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_channels_that_are_not_last_are_no_width(kind: str) -> None:
    make, shape, name = CHANNELS[kind]
    model = built(make)
    with pytest.raises(ValueError, match=rf"'{name}' cannot be a site.*channels lie in axis 1"):
        find_sites(model, torch.randn(shape), name)
    with pytest.raises(ValueError, match="no module that matches.*channels lie in axis 1"):
        find_sites(model, torch.randn(shape), f"[{name}]")


class ChannelsLast(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.layer, self.how = nn.Conv2d(3, 8, 2, stride=2), nn.Identity(), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.layer(x.permute(0, 2, 3, 1) if self.how == "permuted" else x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("how", ["permuted", "as patches"])
def test_channels_that_are_last_are_a_width(how: str) -> None:
    assert [site.width for site in find_sites(ChannelsLast(how), torch.randn(2, 3, 8, 8), "layer")] == [8]


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "vit", "mixtral", "mamba"])
def test_a_square_batch_of_a_model_of_transformers(name: str) -> None:
    model, batch = tiny_models.build(name), tiny_models.batch(name, tiny_models.LENGTH)
    sites = resolve_sites(model, batch, "norms", by_token=name not in ("t5", "vit"))
    assert sites == find_sites(model, batch, "norms")


@pytest.mark.parametrize("shape", [(7, 7), (5, 7)], ids=["square", "oblong"])
@pytest.mark.parametrize("name", ["XLNet", "FSMT"])
def test_time_major_models_of_transformers(name: str, shape: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "XLNet":
        config = transformers.XLNetConfig(vocab_size=64, d_model=16, n_layer=2, n_head=2, d_inner=24)
        model = transformers.XLNetLMHeadModel(config)
    else:
        sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        sizes |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "d_model": 16, "max_position_embeddings": 32}
        config = transformers.FSMTConfig(src_vocab_size=64, tgt_vocab_size=64, **sizes)
        model = transformers.FSMTForConditionalGeneration(config)
    ids = torch.randint(5, 64, shape, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "concept_labels": torch.arange(len(ids)) % 2}
    with pytest.raises(ValueError, match="sequences one after another in the first axis"):
        scrub(model.eval(), [batch])
