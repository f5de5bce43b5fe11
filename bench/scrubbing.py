"""What scrubbing a concept costs, and what it leaves: methods and modes side by side on the demo's model.

    python bench/scrubbing.py bench/results/scrubbing.json --page docs/scrubbing.md --picture docs/images/modes.png

Erasers are fitted on half of the held-out modules. Loss and divergence are of the other half. Fresh probes inside the
scrubbed model are trained on every other module of that half, and tested on the rest.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import torch
from demo_text import load_text

from leace_fast import Scrubber, evaluate, leace, random_like, scrub
from leace_fast.demo import CATEGORIES, machine

CONTRASTS = 5
MAIN, ONE_PASS = "leace, sequential", "leace, parallel"
CONDITIONS: dict[str, dict[str, Any]] = {
    MAIN: {},
    f"leace with {CONTRASTS} contrasts, sequential": {"method": functools.partial(leace, contrasts=CONTRASTS)},
    "orth, sequential": {"method": "orth"},
    "mean projection, sequential": {"method": "mean_projection"},
    ONE_PASS: {"mode": "parallel"},
}
SEEDS = 5
BEGIN, END = "<!-- table: bench/scrubbing.py -->", "<!-- end -->"
GREY, LINES = "#8a9099", {"clean": "#30343b", ONE_PASS: "#c8372d", MAIN: "#1f6fb4"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--page", type=Path, help="the page whose table is written")
    parser.add_argument("--picture", type=Path, help="the PNG to draw")
    parser.add_argument("--only-table", action="store_true", help="table and picture of what was measured before")
    options = parser.parse_args()
    if not options.only_table:
        measure_all(options.out)
    conditions = json.loads(options.out.read_text(encoding="utf-8"))["conditions"]
    if options.page:
        before, rest = options.page.read_text(encoding="utf-8").split(BEGIN)
        page = f"{before}{BEGIN}\n{table(conditions)}\n{END}{rest.split(END)[1]}"
        options.page.write_text(page, encoding="utf-8")
    if options.picture:
        draw(conditions, options.picture)


def table(conditions: dict[str, Any]) -> str:
    """Return a Markdown table of the conditions, the random ones as one."""
    random = [found for name, found in conditions.items() if name.startswith("random")]
    rows = {name: found for name, found in conditions.items() if not name.startswith("random")}
    if random:
        means = {key: sum(found[key] for found in random) / len(random) for key in ("bits_per_byte", "kl")}
        rows[f"random subspaces, mean of {len(random)}"] = {**means, "probes": {}}
    clean = rows["clean"]["bits_per_byte"]
    (constant,) = {f"{100 * probe['constant']:.1f}" for found in rows.values() for probe in found["probes"].values()}
    lines = [
        f"| | bits per byte | rise | KL to clean, nats | fresh probes, % (constant {constant}) | nats gained | leaks |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in rows.items():
        probes = found["probes"].values()
        cells = ["", "", ""]
        if probes:
            accuracies = [100 * probe["accuracy"] for probe in probes]
            gained = [probe["nats"] for probe in probes]
            leaks = sum(probe["nats_interval"][0] > 0 for probe in probes)
            cells = [f"{min(accuracies):.1f} to {max(accuracies):.1f}", f"{min(gained):+.3f} to {max(gained):+.3f}"]
            cells.append(f"{leaks} of {len(probes)}")
        bits = found["bits_per_byte"]
        rise, kl = (f"{bits - clean:+.4f}", f"{found['kl']:.4f}") if name != "clean" else ("", "")
        lines.append(f"| {name} | {bits:.4f} | {rise} | {kl} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure_all(out: Path) -> None:
    """Scrub in each way, evaluate, and write the figures after each."""
    text = load_text()
    fit, fresh = text.batches(fresh=False), text.batches(fresh=True)
    inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in fit]
    found: dict[str, Any] = {}

    def measure(name: str, scrubber: Scrubber | None, seconds: float | None = None, probe: bool = True) -> None:
        result = evaluate(text.model, fresh, scrubber, text_bytes=text.fresh_bytes, probe=probe)
        found[name] = {
            "nats": result.nats,
            "bits_per_byte": result.bits_per_byte,
            "perplexity": result.perplexity,
            "kl": result.kl,
            "tokens": result.tokens,
            "scrub_seconds": seconds,
            "probes": {site: each._asdict() for site, each in result.probes.items()},
            "reports": reports(scrubber) if probe and scrubber is not None else {},
        }
        facts = {"machine": machine(), "text_bytes": text.fresh_bytes, "fit_modules": len(text.fit)}
        out.write_text(json.dumps({**facts, "conditions": found}, indent=1) + "\n", encoding="utf-8")
        print(f"{name:<36} {result.bits_per_byte:.4f} bits a byte, KL {result.kl or 0:.4f}", flush=True)

    measure("clean", None)
    scrubbers = {}
    for name, options in CONDITIONS.items():
        begin = time.process_time()
        scrubbers[name] = scrub(text.model, inputs, num_classes=len(CATEGORIES), **options)
        measure(name, scrubbers[name], time.process_time() - begin)
    for seed in range(SEEDS):
        measure(f"random {seed}", random_like(scrubbers[MAIN], seed), probe=False)


def reports(scrubber: Scrubber) -> dict[str, dict[str, Any]]:
    """Return what the erasers say that fresh rows will show, by site."""
    names = ("rank", "groups", "effective_groups", "expected_leak", "expected_group_leak", "effective_rank", "change")
    return {
        site: {name: getattr(eraser.report, name) for name in names}
        for site, eraser in scrubber.items()
        if eraser.report is not None
    }


def draw(conditions: dict[str, Any], path: Path) -> None:
    """Draw what fresh probes read at each site: clean, scrubbed in one pass, and one site after another."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9.0, 4.2), dpi=130)
    names = {"clean": "clean", ONE_PASS: "scrubbed in one pass", MAIN: "scrubbed one site after another"}
    for condition, colour in LINES.items():
        probes = list(conditions[condition]["probes"].values())
        values = [100 * probe["accuracy"] for probe in probes]
        low, high = ([100 * probe["accuracy_interval"][end] for probe in probes] for end in (0, 1))
        axes.fill_between(range(len(values)), low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(values, color=colour, marker="o", markersize=4.5, linewidth=1.8)
        axes.annotate(
            names[condition],
            (len(values) - 1, values[-1]),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    sites = list(conditions["clean"]["probes"])
    constant = 100 * conditions["clean"]["probes"][sites[0]]["constant"]
    axes.axhline(constant, color=GREY, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"best constant answer, {constant:.1f} %", (0, constant), (0, -12), textcoords="offset points", color=GREY
    )
    labels = [f"{site.split('.')[2]} {'MLP' if 'post' in site else 'attention'}" for site in sites]
    axes.set_xticks(range(len(sites)), labels, fontsize=8.5)
    axes.set_xlabel("norm in front of", color=GREY)
    axes.set_ylabel("accuracy of a fresh probe, %", color=GREY)
    axes.set(ylim=(0, 100), xlim=(-0.3, len(sites) + 2.4))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
