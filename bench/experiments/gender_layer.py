"""Gender of a first name in the residual stream of one layer of a language model: what it says next, he or she.

An eraser acts on every token behind the middle block. It was fitted on prompts with other names than those tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import leace_fast as lf
from leace_fast.evaluation import linear_probe

from . import gender, language_model
from .claims import Claim, Result, Table, percent

SITE = "model.layers.14"  # the middle one of 30
NEUTRAL_TOKENS, METRIC_TOKENS = 4_096, 8_192


@dataclass(frozen=True)
class Rows:
    """What the model has at the site (rows, dim), from the name on; each row's class and number of name."""

    x: Tensor
    y: Tensor
    names: Tensor


def rows_of(part: str) -> Rows:
    """Return the rows of the prompts of a part."""
    found = []
    for one in gender.prompts(part):
        batch = one.batch()
        kept = batch["concept_labels"] >= 0
        names = batch["concept_groups"][:, None].expand(kept.shape)
        found.append((language_model.hidden(SITE, one.ids)[kept], batch["concept_labels"][kept], names[kept]))
    return Rows(*(torch.cat(part) for part in zip(*found, strict=True)))


def metric(dim: int) -> lf.Moments:
    """Return statistics of all tokens of the prompts that are fitted on, and of neutral text."""
    moments = lf.Moments(dim)
    for ids in [one.ids for one in gender.prompts("fit")] + [
        b["input_ids"] for b in gender.neutral_text(1, METRIC_TOKENS)
    ]:
        moments.update(language_model.hidden(SITE, ids))
    return moments


def erasers(fit: Rows) -> dict[str, lf.Eraser]:
    """Return the erasers that are compared, by name."""
    x, y = fit.x, fit.y
    moments = lf.Moments(x.shape[1], 2).update(x, y, groups=fit.names)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    batches = list(zip(x[order].split(512), y[order].split(512), strict=True))
    orth = lf.methods.orth(moments)
    return {
        "inlp, rank 1": lf.methods.inlp(batches, classifier="logistic", rank=1),
        "leace, metric of these rows": lf.leace(moments),
        "leace, metric of all text": lf.leace(moments, metric=metric(x.shape[1])),
        "orth": orth,
        "median": lf.methods.median(batches),
        "orth, scaled(2)": orth.scaled(2.0),
        "random, rank 1": lf.methods.random_subspace(moments, 1),
    }


def table_row(
    name: str, eraser: lf.Eraser | None, train: Rows, test: Rows, kept: Sequence[float], rise: float
) -> list[str]:
    """Return what an eraser does, as text."""
    x, test_x = (train.x, test.x) if eraser is None else (eraser(train.x), eraser(test.x))
    probe = linear_probe(x, train.y, test_x, test.y, groups=test.names, train_groups=train.names)
    spread = float((test.x - test.x.mean(0)).square().sum(1).mean())
    change = float((test_x - test.x).square().sum(1).mean()) / spread
    low, high = (percent(end) for end in probe.accuracy_interval)
    return [
        name,
        percent(kept[0]),
        f"{percent(kept[1])} to {percent(kept[2])}",
        f"{rise:+.3f}",
        percent(probe.accuracy),
        f"{low} to {high}",
        percent(change),
    ]


HEADING = ["eraser", "gap kept", "95 %", "neutral loss, nats", "fresh probe", "95 %", "change of the rows"]


def run() -> Result:
    """Return what was found."""
    model, _ = language_model.load()
    fit, train, test = (rows_of(part) for part in ("fit", "train", "test"))
    asked, neutral = gender.prompts("test"), gender.neutral_text(0, NEUTRAL_TOKENS)
    y = asked[0].y
    before, base = gender.differences(asked), language_model.loss(neutral)
    kept, rise, after = {"none": (1.0, 1.0, 1.0)}, {"none": 0.0}, {}
    made: dict[str, lf.Eraser | None] = {"none": None, **erasers(fit)}
    for name, eraser in made.items():
        if eraser is not None:
            with lf.Scrubber({SITE: eraser}).attached(model):
                after[name] = gender.differences(asked)
                rise[name] = language_model.loss(neutral) - base
            kept[name] = gender.kept(after[name], before, y)
    rows = [table_row(name, eraser, train, test, kept[name], rise[name]) for name, eraser in made.items()]
    return Result(
        title="Gender in one layer of a language model",
        sizes={
            "names to fit on": 2 * 100,
            "names to train probes on": 2 * 70,
            "names to test on": 2 * 70,
            "templates": len(gender.TEMPLATES),
            "rows to fit on": len(fit.y),
            "tokens of neutral text in the metric": METRIC_TOKENS,
            "tokens of neutral text to test on": sum(batch["input_ids"].numel() for batch in neutral),
            "gap of the clean model, logits": round(gender.gap(before, y), 3),
            "loss of the clean model on neutral text, nats a token": round(base, 3),
        },
        claims=[
            Claim(
                "INLP, rank 1: share of the gap between he and she that is kept", kept["inlp, rank 1"][0], at_least=0.9
            ),
            Claim("`orth`: share of the gap that is kept", kept["orth"][0], at_most=0.25),
            Claim("`median`: share of the gap that is kept", kept["median"][0], at_most=0.25),
            Claim("`orth`, `scaled(2)`: share of the gap, now turned round", kept["orth, scaled(2)"][0], at_most=0.0),
            Claim("`orth`: rise of the loss on neutral text, nats", rise["orth"], at_most=0.06),
            Claim("`median`: rise of the loss on neutral text, nats", rise["median"], at_most=0.06),
        ],
        tables=[Table("One eraser, acting on every token", HEADING, rows)],
        series={
            "y": y.tolist(),
            "before": before.mean(0).tolist(),
            "after": {name: found.mean(0).tolist() for name, found in after.items()},
        },
    )
