"""`leace-fast scrub`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import (
    DATA,
    DEVICE,
    DTYPE,
    LABEL_COLUMN,
    LABEL_HELP,
    LAST_TOKEN,
    MAX_TOKENS,
    METHOD_HELP,
    MODEL,
    SITES,
    TEXT,
    check_folder,
)
from ._running import screen


def scrub(
    model: MODEL,
    data: DATA,
    out: Annotated[Path, typer.Option(help="Folder for the erasers.")] = Path("leace-scrub"),
    text: TEXT = "text",
    label: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A column of labels; repeatable: the union of the concepts is erased; {LABEL_HELP}",
            show_default=False,
        ),
    ] = None,
    last_token: LAST_TOKEN = False,
    sites: SITES = None,
    method: Annotated[str, typer.Option(help=f"{METHOD_HELP}.")] = "leace",
    mode: Annotated[
        str, typer.Option(help="sequential: one site after another; parallel: in one pass.")
    ] = "sequential",
    buffer: Annotated[str, typer.Option(help="Memory in which forward passes wait; beyond it, a file.")] = "8GiB",
    checkpoint: Annotated[Path | None, typer.Option(help="Folder to go on from after an interruption.")] = None,
    max_tokens: MAX_TOKENS = None,
    device: DEVICE = None,
    dtype: DTYPE = "auto",
) -> None:
    """Scrub concepts from every layer of a model: fit an eraser at each site on what the earlier ones leave.

    30 % of the texts of each class are held out, by a hash of the text, for
    `leace-fast eval` on the same data. A text without a label of one concept
    counts for the others.
    """
    check_folder(out, model)
    if checkpoint:
        check_folder(checkpoint, model)
    from ..study import read_batches, scrub_texts

    console, track = screen()
    batches = read_batches(
        model,
        data,
        text=text,
        label=label or LABEL_COLUMN,
        last_token=last_token,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
    )
    try:
        scrubber = scrub_texts(
            batches,
            sites=sites or "norms",
            method=method,
            mode=mode,
            buffer=buffer,
            checkpoint=checkpoint,
            track=track,
        )
    except KeyboardInterrupt:
        kept = f": the same command goes on from {checkpoint}" if checkpoint else "; --checkpoint would have kept it"
        typer.echo(f"interrupted{kept}", err=True)
        raise typer.Exit(130) from None
    scrubber.save_pretrained(out)
    console.print(f"{scrubber}\nWritten: {out}", highlight=False, markup=False, soft_wrap=True)
