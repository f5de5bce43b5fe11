"""`leace-fast scrub`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._options import (
    CONTRASTS,
    DATA,
    DEVICE,
    DTYPE,
    GROUPS,
    LABEL_COLUMN,
    LABEL_HELP,
    LAST_TOKEN,
    MAX_TOKENS,
    METHOD_HELP,
    METRIC,
    MODEL,
    NEUTRAL,
    SITES,
    TEXT,
    check_folder,
    leace_options,
)
from ._running import interrupted, screen

if TYPE_CHECKING:
    from ..scrubbing import Scrubber


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
    groups: GROUPS = None,
    last_token: LAST_TOKEN = False,
    sites: SITES = None,
    method: Annotated[str, typer.Option(help=f"{METHOD_HELP}.")] = "leace",
    metric: METRIC = None,
    neutral: NEUTRAL = None,
    contrasts: CONTRASTS = None,
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

    30 % of the texts of each class, or of their groups, are held out, by a hash, for `leace-fast eval` with the same
    data and columns. A text without a label of one concept counts for the others.

    What is fitted is erased: there no linear classifier gains anything. What it is expected to gain on fresh rows, and
    on a fresh group, is said at the end. More rows and more groups of like size bring it down.
    """
    options = leace_options(method, metric, neutral, contrasts)
    check_folder(out, model)
    if checkpoint:
        check_folder(checkpoint, model, "--checkpoint")
    from ..study import read_batches, scrub_texts

    console, track = screen()
    batches = read_batches(
        model,
        data,
        text=text,
        label=label or LABEL_COLUMN,
        groups=groups,
        neutral=neutral,
        last_token=last_token,
        max_tokens=max_tokens,
        device=device,
        dtype=dtype,
    )
    with _interruptible(checkpoint):
        options |= {"method": method, "mode": mode, "buffer": buffer, "checkpoint": checkpoint}
        scrubber = scrub_texts(batches, sites=sites or "norms", track=track, **options)
    scrubber.save_pretrained(out)
    lines = [str(scrubber), *_expectations(scrubber, batches.group), f"Written: {out}"]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _interruptible(checkpoint: Path | None) -> Iterator[None]:
    """Ends the command at Ctrl-C, and says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        kept = f": the same command goes on from {checkpoint}" if checkpoint else "; --checkpoint would have kept it"
        raise interrupted(error, kept) from None


def _expectations(scrubber: Scrubber, group: str) -> Iterator[str]:
    """What the reports expect of fresh rows and of a fresh group, at the worst of all sites.

    Args:
        scrubber: that was fitted.
        group: what a group is, in words.
    """
    reports = {site: eraser.report for site, eraser in scrubber.items() if eraser.report}
    rows = {site: report.expected_leak for site, report in reports.items()}
    if any(rows.values()):
        worst = max(rows, key=lambda site: rows[site])
        yield f"expected on fresh rows: at most {rows[worst]:.2g} nats to gain by a linear classifier, at {worst}"
    groups = {site: r.expected_group_leak for site, r in reports.items() if r.expected_group_leak is not None}
    if groups:
        worst = max(groups, key=lambda site: groups[site])
        fitted, as_good = reports[worst].groups, reports[worst].effective_groups
        leak = f"at most {groups[worst]:.2g} nats, at {worst}"
        if math.isinf(groups[worst]):
            leak = "nothing can be said, as a class is of one alone"
        yield f"expected on a fresh {group}, from {fitted:,} fitted, as good as {as_good:.1f} of like size: {leak}"
    if any(report.contrasts for report in reports.values()):
        numbers = [report.contrasts for report in reports.values()]
        yield f"contrasts: {min(numbers)} to {max(numbers)} a site"
