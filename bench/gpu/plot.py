"""Draw measured times over their floors on the roofline of the device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a picture: rate over operations per byte, one mark for each measurement, and the two ceilings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rates = result["rates"]
    points = [row for row in result["rows"] if row["operations"] and row["bytes"] and row["seconds"]]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    peers = list(dict.fromkeys(row["peer"] for row in points))
    markers = "osD^v<>PX*"
    for index, peer in enumerate(peers):
        own = [row for row in points if row["peer"] == peer]
        intensity = [row["operations"] / row["bytes"] for row in own]
        reached = [row["operations"] / row["seconds"] for row in own]
        axes.scatter(intensity, reached, s=28, marker=markers[index % len(markers)], label=peer)
    low = min((row["operations"] / row["bytes"] for row in points), default=1) / 2
    high = max((row["operations"] / row["bytes"] for row in points), default=1e4) * 2
    knee = rates["bfloat16"] / rates["copy"]
    axes.plot([low, knee, max(high, knee)], [low * rates["copy"], rates["bfloat16"], rates["bfloat16"]], "k-", lw=1)
    axes.set(
        xscale="log", yscale="log", xlabel="operations needed per byte needed", ylabel="operations needed per second"
    )
    axes.set_title(f"{result['machine']['device']}: needed work over measured time")
    axes.legend(fontsize=7)
    figure.savefig(path)
    plt.close(figure)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the measurements as text: time, floor, and times the floor."""
    lines = [f"{'work':40} {'peer':30} {'ms':>9} {'floor':>9} {'ratio':>6}"]
    for row in rows:
        if row["seconds"] is None:
            lines.append(f"{row['name']:40} {row['peer']:30} {row['failed'][:60]}")
            continue
        times = row["seconds"] / row["floor"] if row["floor"] else float("nan")
        text = f"{row['name']:40} {row['peer']:30} {1e3 * row['seconds']:9.3f} {1e3 * row['floor']:9.3f} {times:6.2f}"
        lines.append(text)
    return "\n".join(lines)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
