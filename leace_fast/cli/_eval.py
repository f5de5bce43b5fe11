"""`leace-fast eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ._options import DATA, DEVICE, DTYPE, GROUPS, JSON, LABEL, LAST_TOKEN, MAX_TOKENS, MODEL, TEXT, only
from ._running import screen


def evaluate(
    model: MODEL,
    data: DATA,
    erasers: Annotated[Path | None, typer.Option(help="The folder of a scrubber; none for the clean model.")] = None,
    text: TEXT = "text",
    label: LABEL = None,
    groups: GROUPS = None,
    last_token: LAST_TOKEN = False,
    max_tokens: MAX_TOKENS = None,
    device: DEVICE = None,
    dtype: DTYPE = "auto",
    as_json: JSON = False,
) -> None:
    """Measure what a scrubbed model loses on held-out texts, and what can still be read inside it.

    The probes are fresh: trained on half of the held-out texts, or groups, and tested on the rest; the erasers were
    fitted on none of them. Give the data and columns that `scrub` was given. What a probe gains over the constant
    answer is in nats a token, with an interval that covers 95 % of what other groups would give.
    """
    import dataclasses
    import math

    from ..scrubbing import Scrubber
    from ..study import evaluate_texts, read_batches

    _, track = screen()
    scrubber = Scrubber.from_pretrained(erasers) if erasers else None
    batches = read_batches(
        model,
        data,
        text=text,
        label=only(label),
        groups=groups,
        last_token=last_token,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
    )
    found, note = evaluate_texts(batches, scrubber, track)
    if as_json:
        probes = {site: {**probe._asdict(), "leaks": probe.leaks} for site, probe in found.probes.items()}
        for probe in probes.values():  # JSON has no infinity: where groups are too few to tell, null
            probe |= {name: None for name, ends in probe.items() if isinstance(ends, tuple) and math.isinf(ends[0])}
        perplexity = None if found.perplexity is None or math.isinf(found.perplexity) else found.perplexity
        report = {"perplexity": perplexity, "bits_per_byte": found.bits_per_byte}
        typer.echo(json.dumps({**dataclasses.asdict(found), **report, "probes": probes, "note": note}, indent=1))
    else:
        typer.echo(f"{found}\n{note}")
