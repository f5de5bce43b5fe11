"""Part of speech at all norms of a language model, as in section 6 of Belrose et al. 2023: what it costs the model.

Erasers are fitted on 20,000 and on 80,000 tokens of the Brown corpus. Probes by site are trained and tested on texts
that no eraser was fitted on.
"""

from __future__ import annotations

import random

import leace_fast as lf

from . import brown, language_model
from .claims import Claim, Result, Table, percent

LENGTH, EACH = 256, 2  # tokens in a window, and windows of a text
SMALL, LARGE = 20_000, 80_000  # tokens to fit on
TRAIN, TEST = 8_000, 5_000  # tokens
EVERY = 10  # norms from one probe to the next


def parts() -> dict[str, list[language_model.Batch]]:
    """Return batches of texts by part; the small fit is the first texts of the large one."""
    texts = brown.load()
    random.Random(0).shuffle(texts)
    found = {}
    for name, (begin, most) in {
        "test": (0, TEST),
        "train": (50, TRAIN),
        "small": (100, SMALL),
        "large": (100, LARGE),
    }.items():
        found[name] = language_model.tagged_windows(texts[begin:], LENGTH, EACH, most, begin)
    return found


def run() -> Result:
    """Return what was found."""
    model, _ = language_model.load()
    batches = parts()
    norms = [site.name for site in lf.find_sites(model, batches["test"][0])]
    probed = norms[::EVERY]
    classes = len(brown.TAGS)
    small = lf.scrub(model, batches["small"], num_classes=classes)
    large = lf.scrub(model, batches["large"], num_classes=classes)
    ways = {"clean": None, "small": small, "large": large, "random": lf.random_like(large, seed=0)}
    found = {}
    for name, scrubber in ways.items():
        found[name] = lf.evaluate(
            model, batches["test"], scrubber, probe_batches=batches["train"], sites=probed, probe=name != "random"
        )
    return _result(found, batches, len(norms), probed)


def _result(
    found: dict[str, lf.Evaluation], batches: dict[str, list[language_model.Batch]], sites: int, probed: list[str]
) -> Result:
    """Return claims, tables and figures of what was measured, by eraser."""
    nats = {name: each.nats for name, each in found.items() if each.nats is not None}
    rise = {name: value - nats["clean"] for name, value in nats.items()}
    titles = {
        "clean": "none",
        "small": f"leace, fitted on {SMALL:,} tokens",
        "large": f"leace, fitted on {LARGE:,} tokens",
        "random": "random subspaces of the same rank",
    }
    rows = [
        [titles[name], f"{nats[name]:.3f}", f"{rise[name]:+.3f}", "" if each.kl is None else f"{each.kl:.3f}"]
        for name, each in found.items()
    ]
    by_site = [
        [
            f"`{site.removeprefix('model.')}`",
            *(percent(found[name].probes[site].accuracy) for name in ("clean", "small", "large")),
        ]
        for site in probed
    ]
    constant = found["clean"].probes[probed[0]].constant
    return Result(
        title="Part of speech at all sites of a language model",
        sizes={
            "sites": sites,
            "classes": len(brown.TAGS),
            **{f"tokens to {part}": sum(b["input_ids"].numel() for b in some) for part, some in batches.items()},
            "accuracy of the best constant": round(constant, 4),
        },
        claims=[
            Claim("LEACE: rise of the loss, nats", rise["large"], 3.8, 4.8, 2),
            Claim(
                "rise of the loss over that of random subspaces of the same rank",
                rise["large"] / rise["random"],
                at_least=7,
                digits=1,
            ),
        ],
        tables=[
            Table("Loss on texts that nothing was fitted on", ["erasers", "loss, nats", "rise", "KL to clean"], rows),
            Table(
                "Accuracy of a fresh probe, by site",
                ["site", "clean", f"{SMALL:,} tokens", f"{LARGE:,} tokens"],
                by_site,
            ),
        ],
        series={
            "sites": probed,
            "constant": constant,
            **{name: [found[name].probes[site].accuracy for site in probed] for name in ("clean", "small", "large")},
        },
    )
