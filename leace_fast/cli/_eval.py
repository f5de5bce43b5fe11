"""`leace-fast eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ._options import DATA, DEVICE, DTYPE, JSON, LABEL, LAST_TOKEN, MAX_TOKENS, MODEL, TEXT, only
from ._running import screen


def evaluate(
    model: MODEL,
    data: DATA,
    erasers: Annotated[Path | None, typer.Option(help="The folder of a scrubber; none for the clean model.")] = None,
    text: TEXT = "text",
    label: LABEL = None,
    last_token: LAST_TOKEN = False,
    max_tokens: MAX_TOKENS = None,
    device: DEVICE = None,
    dtype: DTYPE = "auto",
    as_json: JSON = False,
) -> None:
    """Measure what a scrubbed model loses on held-out texts, and what can still be read inside it.

    The probes are trained on each other window of the held-out texts, and tested on the rest.
    """
    import dataclasses

    from ..scrubbing import Scrubber
    from ..study import evaluate_texts, read_batches

    _, track = screen()
    scrubber = Scrubber.from_pretrained(erasers) if erasers else None
    batches = read_batches(
        model,
        data,
        text=text,
        label=only(label),
        last_token=last_token,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
    )
    found = evaluate_texts(batches, scrubber, track)
    if as_json:
        probes = {site: probe._asdict() for site, probe in found.probes.items()}
        report = {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
        typer.echo(json.dumps({**dataclasses.asdict(found), **report, "probes": probes}, indent=1))
    else:
        typer.echo(str(found))
