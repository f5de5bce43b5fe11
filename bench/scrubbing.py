"""What scrubbing a concept costs, and what it leaves: methods and modes side by side on the demo's model.

    python bench/scrubbing.py bench/results/scrubbing.json --page docs/scrubbing.md --picture docs/images/modes.png

Erasers are fitted on half of the held-out modules. Loss and divergence are of the other half. Fresh probes inside the
scrubbed model are trained on every other module of that half and tested on the rest, both ways round; and trained on
every other window and tested on the rest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from demo_text import Reading, Text, load_text

from leace_fast import Scrubber, evaluate, random_like, scrub
from leace_fast.demo import CATEGORIES, machine
from leace_fast.models import GROUPS

PROBE_ROWS = 8000
MAIN, ONE_PASS = "leace, sequential", "leace, parallel"
CONDITIONS: dict[str, dict[str, Any]] = {
    MAIN: {},
    ONE_PASS: {"mode": "parallel"},
    "orth, sequential": {"method": "orth"},
    "mean projection, sequential": {"method": "mean_projection"},
}
PROBED = ("clean", MAIN, ONE_PASS)  # of other methods with equal class means the loss is what differs
SEEDS = 3
BEGIN, END = "<!-- table: bench/scrubbing.py -->", "<!-- end -->"
GREY, LINES = "#8a9099", {"clean": "#30343b", ONE_PASS: "#c8372d", MAIN: "#1f6fb4"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--page", type=Path, help="the page whose table is written")
    parser.add_argument("--picture", type=Path, help="the PNG to draw")
    parser.add_argument("--only-table", action="store_true", help="table and picture of what was measured before")
    parser.add_argument("--go-on", action="store_true", help="keep the conditions that OUT holds, measure the others")
    options = parser.parse_args()
    if not options.only_table:
        measure_all(options.out, options.go_on)
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
    other, same = (
        f"{100 * next(iter(of(rows['clean']).values())).constant:.1f}" for of in (other_modules, same_modules)
    )
    lines = [
        "| | bits per byte | rise | KL to clean, nats "
        f"| other modules, % (constant {other}) | nats | same modules, % (constant {same}) | nats |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in rows.items():
        cells = [cell for of in (other_modules, same_modules) for cell in spans(list(of(found).values()))]
        bits = found["bits_per_byte"]
        rise, kl = (f"{bits - clean:+.4f}", f"{found['kl']:.4f}") if name != "clean" else ("", "")
        lines.append(f"| {name} | {bits:.4f} | {rise} | {kl} | {' | '.join(cells)} |")
    return "\n".join(lines)


def other_modules(found: dict[str, Any]) -> dict[str, Reading]:
    """Return what probes that were trained on other modules read at each site."""
    return {site: Reading.of(probes["modules"]) for site, probes in found["probes"].items()}


def same_modules(found: dict[str, Any]) -> dict[str, Reading]:
    """Return what probes that were trained on other windows read at each site."""
    return {site: Reading.of(probes["windows"]) for site, probes in found["probes"].items()}


def spans(read: list[Reading]) -> list[str]:
    """Return the least and the most accuracy, and nats gained, of the sites."""
    if not read:
        return ["", ""]
    accuracies, gained = [100 * each.accuracy for each in read], [each.nats for each in read]
    return [f"{min(accuracies):.1f} to {max(accuracies):.1f}", f"{min(gained):+.3f} to {max(gained):+.3f}"]


def measure_all(out: Path, go_on: bool) -> None:
    """Scrub in each way, evaluate, and write the figures after each."""
    text = load_text()
    inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in text.batches(text.fit)]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["conditions"] if go_on else {}

    def scrubbed(name: str) -> Scrubber:
        return scrub(text.model, inputs, num_classes=len(CATEGORIES), **CONDITIONS[name])

    def measure(name: str, scrubber: Scrubber | None, seconds: float | None = None) -> None:
        probe = name in PROBED
        found[name] = {
            **evaluated(text, scrubber, probe),
            "scrub_seconds": seconds,
            "reports": reports(scrubber) if probe and scrubber is not None else {},
        }
        facts = {"machine": machine(), "text_bytes": text.fresh_bytes, "fit_modules": len(text.fit)}
        out.write_text(json.dumps({**facts, "conditions": found}, indent=1) + "\n", encoding="utf-8")
        print(f"{name:<36} {found[name]['bits_per_byte']:.4f} bits a byte, KL {found[name]['kl'] or 0:.4f}", flush=True)

    if "clean" not in found:
        measure("clean", None)
    for name in CONDITIONS:
        if name not in found:
            begin = time.process_time()
            scrubber = scrubbed(name)
            measure(name, scrubber, time.process_time() - begin)
    seeds = [seed for seed in range(SEEDS) if f"random {seed}" not in found]
    main = scrubbed(MAIN) if seeds else None
    for seed in seeds:
        if main is not None:
            measure(f"random {seed}", random_like(main, seed))


def evaluated(text: Text, scrubber: Scrubber | None, probe: bool) -> dict[str, Any]:
    """Return loss and divergence over the fresh modules, and the probes of each site."""
    windows = [{name: value for name, value in batch.items() if name != GROUPS} for batch in text.batches(text.fresh)]
    result = evaluate(text.model, windows, scrubber, text_bytes=text.fresh_bytes, probe=probe, probe_rows=PROBE_ROWS)
    ways: list[Any] = []
    if probe:
        halves = [text.batches(modules) for modules in text.halves]
        ways = [
            evaluate(text.model, test, scrubber, probe_batches=train, probe_rows=PROBE_ROWS).probes
            for test, train in (halves, halves[::-1])
        ]
    return {
        "nats": result.nats,
        "bits_per_byte": result.bits_per_byte,
        "kl": result.kl,
        "tokens": result.tokens,
        "probes": {
            site: {"modules": [way[site]._asdict() for way in ways], "windows": [each._asdict()]}
            for site, each in result.probes.items()
        },
    }


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

    figure, both = plt.subplots(1, 2, figsize=(11.0, 4.4), dpi=130, sharey=True)
    names = {"clean": "clean", ONE_PASS: "scrubbed in one pass", MAIN: "scrubbed one site after another"}
    titles = {"trained on other modules": other_modules, "trained on other windows of the same modules": same_modules}
    for axes, (title, of) in zip(both, titles.items(), strict=True):
        for condition, colour in LINES.items():
            values = [100 * each.accuracy for each in of(conditions[condition]).values()]
            axes.plot(values, color=colour, marker="o", markersize=4.5, linewidth=1.8, label=names[condition])
        clean = of(conditions["clean"])
        sites, constant = list(clean), 100 * next(iter(clean.values())).constant
        axes.axhline(constant, color=GREY, linestyle="--", linewidth=1.2, label="best constant answer")
        labels = [f"{site.split('.')[2]} {'MLP' if 'post' in site else 'attn.'}" for site in sites]
        axes.set_xticks(range(len(sites)), labels, fontsize=8, rotation=45, ha="right")
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.set(ylim=(0, 100))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    both[0].set_ylabel("accuracy of a fresh probe, %")
    figure.legend(*both[0].get_legend_handles_labels(), loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
