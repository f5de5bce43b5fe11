"""A study as a person meets it: tables for the terminal, and a folder with a report, pictures and erasers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._extras import optional
from ..scrubbing import Scrubber
from ._plots import plot_loss, plot_probes, short_names
from ._records import QUIET, SLACK, Loss, Study

with optional("tables need rich"):
    from rich.table import Table

FORMAT_VERSION = 1
FEW_ROWS = 2500  # fewer, and the standard error of an accuracy of a half passes a point


def probe_table(study: Study) -> Table:
    """Return probe accuracy by site, in percent."""
    names = short_names([site.site for site in study.sites])
    prefix = study.sites[0].site.removesuffix(names[0])
    where = f" ({prefix}*)" if prefix else ""
    table = Table(title=f"Held-out accuracy of a linear probe, %{where}", title_justify="left")
    both = any(site.one_pass is not None for site in study.sites)
    for name in ("site", "rank", "before", "scrubbed", "constant", *(["one pass"] if both else [])):
        table.add_column(name, justify="left" if name == "site" else "right", overflow="fold")
    for site, name in zip(study.sites, names, strict=True):
        values = [f"{100 * value:.1f}" for value in (site.before, site.after, site.constant)]
        values[1] = f"[{'green' if site.guarded else 'red'}]{values[1]}[/]"
        values += ["" if site.one_pass is None else f"{100 * site.one_pass:.1f}"] if both else []
        table.add_row(name, str(site.rank), *values)
    return table


def loss_table(loss: Loss) -> Table:
    """Return the loss of the language model, in bits per byte and nats per token."""
    table = Table(title="Loss of the language model on held-out text", title_justify="left")
    for name in ("", "bits per byte", "rise", "nats per token"):
        table.add_column(name, justify="left" if not name else "right")
    rows = [("clean", loss.clean), ("scrubbed in one pass", loss.one_pass), ("scrubbed, site after site", loss.erased)]
    if loss.random:
        rows.insert(1, (f"random subspaces, mean of {len(loss.random)} seeds", sum(loss.random) / len(loss.random)))
    for name, nats in rows:
        rise = "" if name == "clean" else f"{loss.bits(nats) - loss.bits(loss.clean):+.4f}"
        table.add_row(name, f"{loss.bits(nats):.4f}", rise, f"{nats:.4f}")
    return table


def verdict(study: Study) -> list[str]:
    """Return what the tables show, one sentence each."""
    guarded = sum(site.guarded for site in study.sites)
    lines = [
        f"Scrubbed, the probe is within {100 * SLACK:.0f} point of the best constant "
        f"at {guarded} of {len(study.sites)} sites."
    ]
    tested = study.rows.get("probe_test", 0)
    if 0 < tested < FEW_ROWS:
        lines.append(
            f"Only {tested} held-out rows were tested: each accuracy is uncertain by {50 / tested**0.5:.1f} points."
        )
    again = sum(site.one_pass is not None and site.one_pass > site.constant + SLACK for site in study.sites)
    if again:
        lines.append(
            f"With all erasers fitted in one pass, {again} can be read again: each was fitted on clean activations, "
            "and those before it change what it meets."
        )
    if study.loss and study.loss.random and study.loss.erased > study.loss.clean:
        share = study.loss.random_rise_share
        missed = "" if share <= QUIET else ": NOT met"
        lines.append(
            f"Random subspaces cost {share:.1%} of the concept's rise in loss (expected at most {QUIET:.0%}{missed})."
        )
    for site in study.sites:
        lines += [f"Not erased at {site.site}: {what}" for what in site.not_erased]
    return lines


def stage_line(study: Study) -> str:
    """Return the time of each stage in one line."""
    parts = [f"{name} {seconds:.1f} s" for name, seconds in study.seconds.items()]
    return f"{', '.join(parts)}; {sum(study.seconds.values()):.0f} s in all"


def write_study(
    study: Study,
    folder: str | os.PathLike[str],
    facts: Mapping[str, Any],
    concept: str = "the concept",
    model_id: str = "",
    revision: str = "",
) -> list[Path]:
    """Write report.json, the pictures and the erasers to a folder and return the paths.

    Args:
        facts: what else the report says: data, model, versions.
        concept: what the pictures call the concept.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "probe_accuracy.png"]
    plot_probes(study.sites, paths[0], concept)
    if study.loss:
        paths.append(folder / "loss.png")
        plot_loss(study.loss, paths[-1], concept)
    Scrubber(study.erasers, model_id, revision).save_pretrained(folder / "erasers")
    report = {"format_version": FORMAT_VERSION, **facts, **study.to_dict()}
    paths += [folder / "report.json", folder / "erasers"]
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return paths
