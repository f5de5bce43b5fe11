"""Gender of a first name in the residual stream of one layer of a language model: what it says next, he or she.

An eraser acts on every token behind the middle block. It was fitted on prompts with other names than those tested.
"""

from __future__ import annotations

import torch
from torch import Tensor

import leace_fast as lf
from leace_fast.evaluation import linear_probe

from . import gender, language_model
from .claims import Claim, Result, Table, percent

SITE = "model.layers.14"  # the middle one of 30
NEUTRAL_TOKENS = 4_096


def rows_of(part: str) -> tuple[Tensor, Tensor]:
    """Return what the model has at the site (rows, dim), from the name on, and its classes."""
    rows, labels = [], []
    for one in gender.prompts(part):
        y = one.batch()["concept_labels"]
        rows.append(language_model.hidden(SITE, one.ids)[y >= 0])
        labels.append(y[y >= 0])
    return torch.cat(rows), torch.cat(labels)


def erasers(x: Tensor, y: Tensor) -> dict[str, lf.Eraser]:
    """Return the erasers that are compared, by name."""
    moments = lf.Moments(x.shape[1], 2).update(x, y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    batches = list(zip(x[order].split(512), y[order].split(512), strict=True))
    orth = lf.methods.orth(moments)
    return {
        "inlp, rank 1": lf.methods.inlp(batches, classifier="logistic", rank=1),
        "leace": lf.leace(moments),
        "orth": orth,
        "median": lf.methods.median(batches),
        "orth, scaled(2)": orth.scaled(2.0),
        "random, rank 1": lf.methods.random_subspace(moments, 1),
    }


def run() -> Result:
    """Return what was found."""
    model, _ = language_model.load()
    fit, train, test = (rows_of(part) for part in ("fit", "train", "test"))
    asked, neutral = gender.prompts("test"), gender.neutral_text(0, NEUTRAL_TOKENS)
    y = asked[0].y
    before, base = gender.differences(asked), language_model.loss(neutral)
    probe = linear_probe(*train, *test)
    rows = [["none", "100 %", "", "0", percent(probe.accuracy), "0 %"]]
    kept: dict[str, float] = {}
    rise: dict[str, float] = {}
    after = {}
    for name, eraser in erasers(*fit).items():
        with lf.Scrubber({SITE: eraser}).attached(model):
            after[name] = gender.differences(asked)
            rise[name] = language_model.loss(neutral) - base
        kept[name], low, high = gender.kept(after[name], before, y)
        probe = linear_probe(eraser(train[0]), train[1], eraser(test[0]), test[1])
        spread = float((test[0] - test[0].mean(0)).square().sum(1).mean())
        change = float((eraser(test[0]) - test[0]).square().sum(1).mean()) / spread
        interval = f"{percent(low)} to {percent(high)}"
        cells = [percent(kept[name]), interval, f"{rise[name]:+.3f}", percent(probe.accuracy), percent(change)]
        rows.append([name, *cells])
    heading = ["eraser", "gap kept", "95 %, over names", "neutral loss, nats", "fresh probe", "change of the rows"]
    return Result(
        title="Gender in one layer of a language model",
        sizes={
            "names to fit on": 2 * 100,
            "names to train probes on": 2 * 70,
            "names to test on": 2 * 70,
            "templates": len(gender.TEMPLATES),
            "rows to fit on": len(fit[1]),
            "tokens of neutral text": sum(batch["input_ids"].numel() for batch in neutral),
            "gap of the clean model, logits": round(gender.gap(before, y), 3),
            "loss of the clean model on neutral text, nats a token": round(base, 3),
        },
        claims=[
            Claim("INLP, rank 1: share of the gap between he and she that is kept", kept["inlp, rank 1"], at_least=0.9),
            Claim("`orth`: share of the gap that is kept", kept["orth"], at_most=0.25),
            Claim("`median`: share of the gap that is kept", kept["median"], at_most=0.25),
            Claim("`orth`, `scaled(2)`: share of the gap, now turned round", kept["orth, scaled(2)"], at_most=0.0),
            Claim("`orth`: rise of the loss on neutral text, nats", rise["orth"], at_most=0.06),
            Claim("`median`: rise of the loss on neutral text, nats", rise["median"], at_most=0.06),
        ],
        tables=[Table("One eraser, acting on every token", heading, rows)],
        series={
            "y": y.tolist(),
            "before": before.mean(0).tolist(),
            "after": {name: found.mean(0).tolist() for name, found in after.items()},
        },
    )
