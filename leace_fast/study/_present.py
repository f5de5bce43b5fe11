"""A study as a person meets it: tables for the terminal, and a folder with a report, pictures and erasers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._extras import optional
from .._folders import in_place_of
from ..scrubbing import Scrubber
from ._plots import plot_loss, plot_probes, short_names
from ._records import QUIET, Fitted, Reading, Study

with optional("tables need rich"):
    from rich.table import Table

FORMAT_VERSION = 2


def probe_table(study: Study) -> Table:
    """Return the accuracy of fresh probes by site, in percent; red where the concept is read for sure."""
    names = short_names([site.site for site in study.sites])
    prefix = study.sites[0].site.removesuffix(names[0])
    where = f" ({prefix}*)" if prefix else ""
    table = Table(title=f"Accuracy of a linear probe on fresh {study.group}s, %{where}", title_justify="left")
    for name in ("site", "constant", "clean", *study.variants):
        table.add_column(name, justify="left" if name == "site" else "right", overflow="fold")
    for site, name in zip(study.sites, names, strict=True):
        erased = [_coloured(site.erased[variant]) for variant in study.variants]
        table.add_row(name, f"{100 * site.constant:.1f}", f"{100 * site.clean.hardest.accuracy:.1f}", *erased)
    return table


def _coloured(reading: Reading) -> str:
    probe = reading.hardest
    return f"[{'red' if probe.leaks else 'green'}]{100 * probe.accuracy:.1f}[/]"


def variant_table(study: Study) -> Table:
    """Return what each variant was fitted on, what is left of the concept at its worst site, and what it costs."""
    same, loss = bool(study.sites[0].clean.same), study.loss
    title = "What is left at the worst site: points above the best constant answer, and nats gained over it"
    table = Table(title=title, title_justify="left")
    columns = ["", "rank", "rows", f"other {study.group}s", *([f"the same {study.group}s"] if same else []), "nats"]
    for name in (*columns, *(["bits per byte", "rise"] if loss else [])):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    if loss:
        table.add_row("clean", *[""] * (len(columns) - 1), f"{loss.bits(loss.clean):.4f}", "")
    if loss and loss.random:
        mean = sum(loss.random) / len(loss.random)
        bits = (f"{loss.bits(mean):.4f}", f"{loss.rise(mean):+.4f}")
        table.add_row(f"random subspaces, mean of {len(loss.random)}", *[""] * (len(columns) - 1), *bits)
    for name, scrubber in study.scrubbers.items():
        ranks = sorted({eraser.rank for eraser in scrubber.values()})
        cells = ["-".join(map(str, ranks[:1] + ranks[1:][-1:])), f"{Fitted.of(scrubber).rows:,}"]
        cells += [f"{points(study, name, kind):+.1f}" for kind in ("other", "same")[: 1 + same]]
        cells.append(f"{max(site.erased[name].hardest.nats for site in study.sites):+.3f}")
        if loss:
            cells += [f"{loss.bits(loss.erased[name]):.4f}", f"{loss.rise(loss.erased[name]):+.4f}"]
        table.add_row(name, *cells)
    return table


def points(study: Study, variant: str, kind: str = "other") -> float:
    """Return how many points of accuracy a variant's worst site is above the best constant; NaN if not measured."""
    probe = study.worst(variant, kind)
    return 100 * (probe.accuracy - probe.constant) if probe else float("nan")


def verdict(study: Study) -> list[str]:
    """Return what the tables show, one sentence each."""
    probe, group = study.sites[0].clean.other, study.group
    lines = [
        f"The probes are fresh: no eraser was fitted on their {group}s. They were trained on {probe.train_groups} "
        f"{group}s ({probe.train_rows:,} rows) and tested on {probe.test_groups} others ({probe.test_rows:,} rows)."
    ]
    if group == "row":
        lines = [
            f"Rows were drawn at random: some to fit on, {probe.train_rows:,} to train probes on and "
            f"{probe.test_rows:,} to test them on. Where rows of one text or speaker are alike, those of fresh ones "
            "tell more: name the group of each row."
        ]
    for name in study.variants:
        read = sum(any(probe.leaks for probe in site.erased[name] if probe) for site in study.sites)
        more = f", on {group}s that they were trained on at most {points(study, name, 'same'):.1f}"
        lines.append(
            f"{name}: probes are at most {points(study, name):.1f} points above the best constant"
            f"{more if study.worst(name, 'same') else ''}; they read the concept for sure at {read} of "
            f"{len(study.sites)} sites."
        )
    if study.group_gain is not None:
        lines.append(
            f"Whoever tells the {group} alone, and answers its commonest class, gains {100 * study.group_gain:.1f} "
            f"points on {group}s that they know."
        )
    lines.append(
        "On the very rows that the erasers were fitted on no linear probe reads anything: that is the theorem, and it "
        "says nothing of fresh rows."
    )
    loss = study.loss
    if loss and loss.random and loss.erased[study.main] > loss.clean:
        share = loss.random_rise_share(study.main)
        missed = "" if share <= QUIET else ": NOT met"
        lines.append(
            f"Random subspaces cost {share:.1%} of the rise in loss of {study.main} (expected at most "
            f"{QUIET:.0%}{missed})."
        )
    for site in study.sites:
        for name, what in site.not_erased.items():
            lines += [f"Not erased at {site.site}, {name}: {each}" for each in what]
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
    """Write report.json, the pictures and the main variant's erasers to a folder, in one step, and return the paths.

    Args:
        facts: what else the report says: data, model, versions.
        concept: what the pictures call the concept.
    """
    report = {"format_version": FORMAT_VERSION, **facts, **study.to_dict()}
    names = ["probe_accuracy.png", *(["loss.png"] if study.loss else []), "report.json", "erasers"]
    with in_place_of(folder, "report.json") as new:
        plot_probes(study, new / "probe_accuracy.png", concept)
        if study.loss:
            plot_loss(study, new / "loss.png", concept)
        Scrubber(study.scrubbers[study.main], model_id, revision).save_pretrained(new / "erasers")
        (new / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return [Path(folder) / name for name in names]
