"""Gender of a first name at all norms of a language model, scrubbed one after another: what the metric is for.

The least change is least for the rows that the metric counts. Of prompts alone, other text is none of its business.
"""

from __future__ import annotations

import leace_fast as lf

from . import gender, language_model
from .claims import Claim, Result, Table, percent

NEUTRAL_FIT, NEUTRAL_TEST = 8_192, 4_096  # tokens
WAYS = {
    "all": "leace, metric of all tokens and neutral text",
    "labelled": 'leace, metric="labelled"',
    "random": "random subspaces",
}


def run() -> Result:
    """Return what was found."""
    model, _ = language_model.load()
    fit = [one.batch() for one in gender.prompts("fit")]
    asked = gender.prompts("test")
    neutral, held_out = gender.neutral_text(1, NEUTRAL_FIT), gender.neutral_text(0, NEUTRAL_TEST)
    y = asked[0].y
    before, base = gender.differences(asked), language_model.loss(held_out)
    scrubbers = {"all": lf.scrub(model, fit, neutral=neutral), "labelled": lf.scrub(model, fit, metric="labelled")}
    scrubbers["random"] = lf.random_like(scrubbers["all"], seed=0)
    rows, after, rise, kept = [["none", "100 %", "", "0"]], {}, {}, {}
    for name, scrubber in scrubbers.items():
        with scrubber.attached(model):
            after[name] = gender.differences(asked)
            rise[name] = language_model.loss(held_out) - base
        kept[name], low, high = gender.kept(after[name], before, y)
        rows.append([WAYS[name], percent(kept[name]), f"{percent(low)} to {percent(high)}", f"{rise[name]:+.3f}"])
    return Result(
        title="Gender at all sites of a language model",
        sizes={
            "sites": len(scrubbers["all"]),
            "names to fit on": 2 * 100,
            "tokens of prompts to fit on": sum(batch["input_ids"].numel() for batch in fit),
            "tokens of neutral text in the metric": sum(batch["input_ids"].numel() for batch in neutral),
            "names to test on": 2 * 70,
            "tokens of neutral text to test on": sum(batch["input_ids"].numel() for batch in held_out),
            "gap of the clean model, logits": round(gender.gap(before, y), 3),
            "loss of the clean model on neutral text, nats a token": round(base, 3),
        },
        claims=[
            Claim("metric of all tokens: share of the gap that is kept", kept["all"], at_most=0.45),
            Claim("metric of all tokens: rise of the loss on neutral text, nats", rise["all"], at_most=0.05),
            Claim(
                "metric of labelled rows alone: rise of the loss on neutral text, nats", rise["labelled"], at_least=1.0
            ),
        ],
        tables=[Table("Erasers at all norms", ["erasers", "gap kept", "95 %, over names", "neutral loss, nats"], rows)],
        series={"kept": kept, "rise": rise},
    )
