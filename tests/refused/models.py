"""Models, sites and weights that are refused: what their rows are cannot be told, or erasers cannot be put there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import leace_fast as lf
from refused.refusal import Refusal

TITLE = "Models, sites and batches"


class Around(nn.Module):
    """Something done to rows of 8 columns, a linear layer, and that undone."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.before, self.after = nn.Linear(8, 8), before, after

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return x + self.after(self.layer(self.before(x)), x)


class Twice(nn.Module):
    """A layer that is shared by two places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Pools(nn.Module):
    """As many rows as there are latents, whatever the length."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.layer = nn.Parameter(torch.randn(6, 8)), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((self.latents @ x.transpose(1, 2)).softmax(-1) @ x)


class Last(nn.Module):
    """A layer whose output is (batch, width, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.layer = nn.Linear(8, 8), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.inner(x).transpose(1, 2)).transpose(1, 2)


class Recurrent(nn.Module):
    """A recurrence over (length, batch, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.layer = nn.GRU(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.cell(x)[0])


def batches(by_token: bool = False, mask: Tensor | None = None) -> list[dict[str, Tensor]]:
    labels = torch.arange(36).reshape(6, 6) % 2 if by_token else torch.arange(6) % 2
    made: list[dict[str, Tensor]] = []
    for seed in range(3):
        x = torch.randn(6, 6, 8, generator=torch.Generator().manual_seed(seed))
        made.append({"x": x, "concept_labels": labels, **({} if mask is None else {"attention_mask": mask})})
    return made


def scrub(model: nn.Module, sites: Any = "layer", **options: Any) -> lf.Scrubber:
    return lf.scrub(model, batches(**options), sites)


def halves(y: Tensor, x: Tensor) -> Tensor:
    return y.repeat_interleave(2, dim=1)


def folded() -> tuple[nn.Module, lf.Eraser]:
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), lf.Eraser(torch.eye(8)[:, :1], torch.eye(8)[:1])


def probed_when_folded() -> Any:
    model, eraser = folded()
    lf.fold_(model, {"0": eraser}, torch.randn(3, 8))
    return lf.evaluate(model, [{"input": b["x"], "concept_labels": b["concept_labels"]} for b in batches()], sites="0")


def in_eight_bits() -> Any:
    class Eight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8).to(torch.float8_e4m3fn), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight.to(x.dtype))

    model, eraser = folded()
    return lf.fold_(nn.Sequential(model[0], Eight()), {"0": eraser}, torch.randn(3, 8))  # type: ignore[index]


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Twice()


REFUSALS = [
    Refusal(
        "a site that gives (length, batch, width), as XLNet's and FSMT's layers do",
        "labels would be those of other tokens wherever a batch has as many sequences as tokens; told by passes on two "
        "and on three sequences",
        lambda folder: scrub(Around(lambda x: x.transpose(0, 1), lambda y, x: y.transpose(0, 1)), by_token=True),
        "expected (batch, ..., width), the sequences one after another in the first axis",
    ),
    Refusal(
        "inputs that are (length, batch, width), as of `batch_first=False`",
        "labels, groups and hashes are by sequence, the first axis; told by which axis mixes",
        lambda folder: scrub(Recurrent()),
        "where the first axis mixes and the second does not",
    ),
    Refusal(
        "rows of a batch in which the sequences take turns",
        "the shape is that of rows in order; told by running a sequence beside others",
        lambda folder: scrub(
            Around(
                lambda x: x.transpose(0, 1).reshape(-1, 8),
                lambda y, x: y.reshape(x.shape[1], x.shape[0], 8).transpose(0, 1),
            )
        ),
        "in which the sequences take turns",
    ),
    Refusal(
        "a model that flips, rolls, sorts or gathers its tokens before a site, with one label a token",
        "labels would be those of other tokens; told by a pass in which one token of each sequence is changed",
        lambda folder: scrub(Around(lambda x: x.flip(1), lambda y, x: y.flip(1)), by_token=True),
        "rows in another order than the tokens",
    ),
    Refusal(
        "a site whose last axis is time or space",
        "an eraser acts on the last axis, which has to be the features; told by passes on shorter inputs",
        lambda folder: scrub(Last()),
        "its last axis is time or space",
    ),
    Refusal(
        "a convolution as a site, or what follows one place by place",
        "its channels are not the last axis",
        lambda folder: lf.find_sites(nn.Sequential(nn.Conv1d(8, 8, 3, padding=1)), torch.randn(2, 8, 8), "0"),
        "whose channels lie in axis 1",
    ),
    Refusal(
        "one label a token, for a site with the same number of rows whatever the length",
        "its rows are not the tokens; one label a sequence is taken",
        lambda folder: scrub(Pools(), by_token=True),
        "its rows are not the tokens",
    ),
    Refusal(
        "padding, and a site with other rows than the mask's, as frames of sound",
        "which rows are padding is not known; a mask of ones alone is taken",
        lambda folder: scrub(
            Around(lambda x: x[:, ::2], halves), mask=torch.ones(6, 6, dtype=torch.int64).tril().flip(0)
        ),
        "does not tell which of 3 rows are padding",
    ),
    Refusal(
        "a site that runs twice in a pass, as of ALBERT and of Gemma 3n's router norms",
        "it holds several distributions, which one eraser cannot serve",
        lambda folder: scrub(Twice()),
        "ran 2 times in one forward pass",
    ),
    Refusal(
        'a model none of whose norms a layer reads, as of OLMo 2 and of convolutions, with `sites="norms"`',
        "there is nothing that could be folded; name a group such as `residual`, or modules",
        lambda folder: scrub(Twice(), sites="norms"),
        "is read by a layer of its stack",
    ),
    Refusal(
        "a model that draws at random in evaluation mode, as Reformer and ViT-MAE do, in sequential mode",
        "passes that stop and go on would be of other draws; parallel mode takes it",
        lambda folder: scrub(Around(lambda x: x + torch.randn_like(x), lambda y, x: y)),
        'mode="parallel" needs no stops',
    ),
    Refusal(
        "a model of which some weights are on the device meta",
        "they were not loaded; weights that accelerate offloads are taken",
        lambda folder: scrub(on_meta()),
        "on the device meta, without numbers",
    ),
    Refusal(
        "a module without a forward pass",
        "nothing would run; give the module that is called on batches",
        lambda folder: scrub(nn.ModuleList([nn.Linear(8, 8)]), "0"),
        "has no forward pass",
        TypeError,
    ),
    Refusal(
        "a module of TorchScript",
        "it takes no hooks; give the Python module that it was made of",
        lambda folder: scrub(torch.jit.script(nn.Sequential(nn.Linear(8, 8))), "0"),
        "is a module of TorchScript",
    ),
    Refusal(
        "batches that are tuples or objects",
        "labels and inputs are told apart by name",
        lambda folder: lf.scrub(Twice(), [(torch.zeros(2, 3, 8),)], "layer"),  # type: ignore[list-item]
        "expected the model's inputs by name",
        TypeError,
    ),
    Refusal(
        "folding into weights of 8 bits, quantised or sharded",
        "their values cannot be written; fold first, or attach",
        lambda folder: in_eight_bits(),
        "fold before quantising or sharding",
    ),
    Refusal(
        "probes at a site that is folded",
        "it still gives out the concept, which the weights that read it leave out: the probe would tell of a leak",
        lambda folder: probed_when_folded(),
        "is folded into the weights that read it",
    ),
]
