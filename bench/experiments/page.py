"""The tables of docs/experiments.md, from the figures in bench/results/experiments/."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .claims import Claim, Result, Table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "experiments"
PAGE = ROOT / "docs" / "experiments.md"
PICTURES = ROOT / "docs" / "images"
BLOCK = re.compile(r"(<!-- experiment: (\w+) -->\n).*?(<!-- end -->)", re.S)
SUMMARY = "summary"


def results(names: Iterable[str]) -> dict[str, Result]:
    """Return what was kept of the experiments, by name; those that never ran are left out."""
    paths = {name: RESULTS / f"{name}.json" for name in names}
    return {
        name: Result.of_json(json.loads(path.read_text(encoding="utf-8")))
        for name, path in paths.items()
        if path.exists()
    }


def write(found: Mapping[str, Result], path: Path = PAGE) -> None:
    """Put the tables into a page."""
    path.write_text(filled(path.read_text(encoding="utf-8"), found), encoding="utf-8")


def filled(text: str, found: Mapping[str, Result]) -> str:
    """Return a page whose marked blocks are made anew; one of an experiment that never ran says so.

    Raises:
        ValueError: an experiment has no block.
    """
    named = {name for _, name, _ in BLOCK.findall(text)}
    if missing := set(found) - named:
        raise ValueError(f"the page has blocks of {sorted(named)}, but none of {sorted(missing)}")

    def block(match: re.Match[str]) -> str:
        name = match[2]
        content = f"*There are no figures yet: `make experiments ONLY={name}`.*"
        if name == SUMMARY or name in found:
            content = summary(found) if name == SUMMARY else section(found[name])
        return f"{match[1]}\n{content}\n\n{match[3]}"

    return BLOCK.sub(block, text)


def section(result: Result) -> str:
    """Return the claims of an experiment, what else was measured, and what on."""
    sizes = "; ".join(
        f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}" for name, value in result.sizes.items()
    )
    parts = [claims(result.claims), *(f"**{table.title}**\n\n{markdown(table)}" for table in result.tables)]
    return "\n\n".join([*parts, f"*{sizes}. It ran for {result.seconds / 60:.1f} minutes.*"])


def claims(every: Iterable[Claim]) -> str:
    """Return claims as a table."""
    rows = [[claim.text, claim.bounds, claim.figure, verdict(claim)] for claim in every]
    return markdown(Table("", ["claim", "expected", "measured", "held"], rows))


def verdict(claim: Claim) -> str:
    """Return whether a claim held, in a word."""
    return "yes" if claim.held else "**no**"


def summary(found: Mapping[str, Result]) -> str:
    """Return one line an experiment: how many of its claims held, and which did not."""
    rows = []
    for result in found.values():
        failed = [claim.text for claim in result.claims if not claim.held]
        anchor = re.sub(r"[^\w -]", "", result.title.lower()).replace(" ", "-")
        held = f"{len(result.claims) - len(failed)} of {len(result.claims)}"
        rows.append([f"[{result.title}](#{anchor})", held, "; ".join(failed) or "none"])
    return markdown(Table("", ["experiment", "claims that held", "those that did not"], rows))


def markdown(table: Table) -> str:
    """Return a table in Markdown; columns of figures are set to the right.

    >>> print(markdown(Table("", ["eraser", "change"], [["leace", "1.2 %"]])))
    | eraser | change |
    | --- | ---: |
    | leace | 1.2 % |
    """
    numeric = [
        all(re.match(r"^([+-]?\d.*)?$", row[column]) for row in table.rows) for column in range(len(table.heading))
    ]
    marks = ["---:" if right else "---" for right in numeric]
    return "\n".join("| " + " | ".join(row) + " |" for row in [table.heading, marks, *table.rows])
