"""One table of a benchmark's JSON: `python bench/table.py [JSON] [--markdown]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

OURS = "leace-fast"
WIDTH = 130  # of a terminal that holds every column
DEFAULT = Path(__file__).parent / "results" / "cpu.json"
MARKS = ("<!-- table begins: {} -->", "<!-- table ends -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", nargs="?", type=Path, default=DEFAULT, help="what `make bench` wrote")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--ranges", action="store_true", help="one line an operation, with ranges over its sizes")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the Markdown into a page, between its marks")
    options = parser.parse_args()
    results = json.loads(options.json.read_text())
    text = ranges(results) if options.ranges else markdown(results)
    if options.write:
        given = "" if options.json == DEFAULT else f"{options.json} "
        begin = MARKS[0].format(f"python bench/table.py {given}{'--ranges ' if options.ranges else ''}--write")
        head, rest = options.write.read_text().split(begin)
        tail = rest.split(MARKS[1], 1)[1]
        options.write.write_text(f"{head}{begin}\n{text}\n{MARKS[1]}{tail}")
    elif options.markdown or options.ranges:
        print(text)
    else:
        show(results)


def groups(results: dict) -> dict[str, dict[str, dict]]:
    """Return the measurements by group and peer, those groups only that we are in."""
    found: dict[str, dict[str, dict]] = {}
    for entry in results["benchmarks"]:
        found.setdefault(entry["group"], {})[entry["peer"]] = entry
    return {group: peers for group, peers in found.items() if OURS in peers}


def operations(results: dict) -> dict[str, dict[str, dict[str, dict]]]:
    """Return the groups by operation: what stands before the sizes in their names."""
    found: dict[str, dict[str, dict[str, dict]]] = {}
    for group, peers in groups(results).items():
        name, sizes = group.split(" d=")
        found.setdefault(name, {})[f"d={sizes}"] = peers
    return found


def rows(sized: dict[str, dict[str, dict]]) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the lines of one operation's table."""
    names = list(dict.fromkeys(peer for peers in sized.values() for peer in peers if peer != OURS))
    lines = []
    for sizes, peers in sized.items():
        own = peers[OURS]
        ratios = [ratio(peers[name]["median"] / own["median"]) if name in peers else "" for name in names]
        share = f"{100 * own['floor'] / own['median']:.0f} %"
        lines.append([sizes, seconds(own["median"]), amount(own["bytes"]), amount(own["operations"]), share, *ratios])
    return ["sizes", "time", "bytes", "operations", "of floor", *names], lines


def show(results: dict) -> None:
    """Print the table to the terminal."""
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(machine(results), style="dim")
    found = operations(results)
    names = list(dict.fromkeys(name for sized in found.values() for name in rows(sized)[0][5:]))
    table = Table(box=box.SIMPLE_HEAD, title="leace-fast, and the time of each peer as a multiple of it")
    for name in ("operation", "time", "bytes", "operations", "of floor", *names):
        table.add_column(name, justify="left" if name == "operation" else "right", no_wrap=name == "operation")
    for operation, sized in found.items():
        heading, lines = rows(sized)
        for line in lines:
            cells = dict(zip(heading[5:], line[5:], strict=True))
            table.add_row(f"{operation} {line[0]}", *line[1:5], *(cells.get(name, "") for name in names))
        table.add_section()
    console.print(table)
    costs = Table(box=box.SIMPLE_HEAD, title="what erasing at every site adds to a whole generate")
    for name in ("model", "erasing", "costs", "quartiles"):
        costs.add_column(name)
    for line in overheads(results):
        costs.add_row(*line)
    console.print(costs)


def markdown(results: dict) -> str:
    """Return one Markdown table an operation."""
    parts = [machine(results)]
    for operation, sized in operations(results).items():
        heading, lines = rows(sized)
        rule = ["---", *("---:" for _ in heading[1:])]
        parts.append(
            f"### {operation.capitalize()}\n\n"
            + "\n".join("| " + " | ".join(r) + " |" for r in (heading, rule, *lines))
        )
    if lines := overheads(results):
        head = ["generate", "erasing", "costs", "quartiles"]
        rule = ["---", "---", "---:", "---:"]
        parts.append(
            "### A whole `generate`\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))
        )
    return "\n\n".join(parts)


def ranges(results: dict) -> str:
    """Return one Markdown table with a line an operation: its time, and each peer's as a multiple of it."""
    found = operations(results)
    names = list(dict.fromkeys(peer for sized in found.values() for peers in sized.values() for peer in peers))
    names.remove(OURS)
    lines = [["operation", "sizes", "time", *names], ["---", "---", *["---:"] * (1 + len(names))]]
    for operation, sized in found.items():
        times = [peers[OURS]["median"] for peers in sized.values()]
        cells = []
        for name in names:
            ratios = [p[name]["median"] / p[OURS]["median"] for p in sized.values() if name in p]
            cells.append(span(ratios, ratio))
        lines.append([operation, "; ".join(sized), span(times, seconds), *cells])
    return f"{machine(results)}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def span(values: list[float], shown: Callable[[float], str]) -> str:
    """Return the least and the largest of some values.

    >>> span([2.0, 1.0], ratio)
    '1.00 to 2.00'
    """
    return " to ".join(shown(end) for end in (min(values), max(values))) if values else ""


def overheads(results: dict) -> list[list[str]]:
    """Return the lines of what erasing adds to the time of a model: its name, the way, the share and its quartiles."""
    lines = []
    for entry in results["benchmarks"]:
        if "overhead" in entry:
            shares = [f"{share:+.1%}" for share in (entry["overhead"], *entry["overhead_quartiles"])]
            lines.append([entry["group"].removeprefix("generate "), entry["peer"], shares[0], " to ".join(shares[1:])])
    return lines


def machine(results: dict) -> str:
    """Return one sentence on what it ran on, and what that can do at best."""
    info = results["machine_info"]
    rates = info["rates"]
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    products = ", ".join(
        f"{name} {rates[name] / 1e9:.0f}" for name in ("float32", "float64", "bfloat16") if name in rates
    )
    return (
        f"{info['processor']}, {info['threads']} threads on {info['cores']} cores, {info['system']}, Python "
        f"{info['python']}, {versions}; {results['datetime'][:10]}. Floors measured here: copy "
        f"{rates['copy'] / 1e9:.1f} GB/s (read and written), products of matrices in GFLOP/s: {products}."
    )


def seconds(value: float) -> str:
    """Return a time with three digits and its unit.

    >>> seconds(0.00123456)
    '1.23 ms'
    """
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if value >= s), ("us", 1e-6))
    return f"{value / size:.3g} {unit}"


def amount(value: float) -> str:
    """Return a number with three digits and its prefix.

    >>> amount(12345678)
    '12.3 M'
    """
    prefixes = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    prefix, size = next(((p, s) for p, s in prefixes if value >= s), ("", 1.0))
    return f"{value / size:.3g} {prefix}".strip()


def ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()
