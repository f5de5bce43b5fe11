"""The pictures of docs/experiments.md, drawn from the figures alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import page
from .claims import Result

INK, FAINT, GRID = "#30343b", "#9aa0a8", "#e3e6ea"
BLUE, RED, GREEN, ORANGE = "#1f6fb4", "#c8372d", "#2a8a4a", "#d98a1f"


def canvas(columns: int, height: float = 4.4) -> tuple[Figure, list[Axes]]:
    """Return a figure 1,430 pixels wide, and its panels."""
    figure, axes = plt.subplots(1, columns, figsize=(11.0, height), dpi=130, layout="constrained", squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color=GRID, linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(colors=INK)
    return figure, list(axes.flat)


def titled(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the words of a panel."""
    axes.set_title(title, loc="left", color=INK, fontsize=11.5, fontweight="bold")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)


def glove(result: Result) -> Figure:
    """Accuracy by rank: INLP's directions one after the other, the others at rank 1."""
    figure, (axes,) = canvas(1)
    by_rank = [100 * share for share in result.series["by_rank"]]
    axes.plot(
        [0, *range(1, len(by_rank) + 1)], [100 * result.series["clean"], *by_rank], "o-", color=BLUE, label="INLP"
    )
    marks = {
        "leace": ("LEACE", RED, "D", 0.0),
        "orth": ("orth", GREEN, "s", 0.25),
        "rlace": ("R-LACE", ORANGE, "^", 0.5),
    }
    for name, (label, colour, marker, shift) in marks.items():
        axes.plot(
            [1 + shift], [100 * result.series[name]], marker, color=colour, markersize=9, label=f"{label}, rank 1"
        )
    axes.axhline(50, color=FAINT, linestyle="--", linewidth=1.2)
    axes.annotate("chance", (len(by_rank), 50), xytext=(0, -13), textcoords="offset points", color=FAINT, ha="right")
    axes.axhline(
        100 * result.series["limit"], color=FAINT, linestyle=":", linewidth=1.2, label="what the fitted words allow"
    )
    axes.set_ylim(44, 102)
    axes.legend(frameon=False)
    titled(
        axes,
        "Gender in GloVe: what a fresh linear probe still reads",
        "directions erased",
        "accuracy on words never seen, %",
    )
    return figure


def gender_layer(result: Result) -> Figure:
    """What the model says next, name by name, and how much of the gap is kept."""
    figure, (left, right) = canvas(2, 4.8)
    series, y = result.series, result.series["y"]
    shown = {"none": series["before"], **series["after"]}
    for place, found in enumerate(shown.values()):
        for label, colour in ((0, RED), (1, BLUE)):
            values = [value for value, sex in zip(found, y, strict=True) if sex == label]
            shift = 0.17 * (2 * label - 1)
            spots = [place + shift + 0.1 * ((7 * number) % 11 / 10 - 0.5) for number in range(len(values))]
            left.scatter(values, spots, s=9, color=colour, alpha=0.45, linewidths=0)
            left.scatter([sum(values) / len(values)], [place + shift], s=60, color=colour, edgecolors="white", zorder=3)
    left.axvline(0, color=FAINT, linewidth=1.2)
    left.set_yticks(range(len(shown)), list(shown))
    left.invert_yaxis()
    titled(left, "Women's names (red), men's (blue)", "logit of he less that of she", "")
    rows = result.tables[0].rows[1:]
    shares = [float(row[1].split()[0]) for row in rows]
    right.barh(range(len(rows)), shares, color=[BLUE if share > 0 else RED for share in shares])
    for place, (share, row) in enumerate(zip(shares, rows, strict=True)):
        right.text(max(share, 0) + 3, place, f"{share:.0f} %, loss {row[3]}", va="center", color=INK)
    right.axvline(0, color=FAINT, linewidth=1.2)
    right.set_yticks(range(len(rows)), [row[0] for row in rows])
    right.set_xlim(min(shares + [0]) - 8, 190)
    right.invert_yaxis()
    titled(right, "Gap kept; neutral loss, nats", "share of the clean model's gap, %", "")
    return figure


def gender_sites(result: Result) -> Figure:
    """Gap kept and neutral loss of three ways to scrub."""
    figure, (left, right) = canvas(2, 3.0)
    names = {"all": "leace, all tokens", "labelled": "leace, labelled rows", "random": "random subspaces"}
    for axes, key, factor, words in ((left, "kept", 100, "%.0f %%"), (right, "rise", 1, "%+.3f")):
        values = [factor * result.series[key][name] for name in names]
        bars = axes.barh(range(len(names)), values, color=[GREEN, RED, FAINT])
        axes.bar_label(bars, [words % value for value in values], padding=4)
        axes.set_yticks(range(len(names)), list(names.values()))
        axes.invert_yaxis()
        axes.set_xlim(min(values + [0]) * 1.2, max(values) * 1.22 + 1e-3)
    titled(left, "Gap between he and she that is kept", "share of the clean model's gap, %", "")
    titled(right, "Rise of the loss on neutral text", "nats a token", "")
    return figure


def part_of_speech(result: Result) -> Figure:
    """Accuracy of fresh probes by site."""
    figure, (axes,) = canvas(1)
    series = result.series
    lines = {
        "clean": ("clean", INK),
        "small": ("fitted on 20,000 tokens", ORANGE),
        "large": ("fitted on 80,000 tokens", GREEN),
    }
    for name, (label, colour) in lines.items():
        axes.plot(range(len(series["sites"])), [100 * share for share in series[name]], "o-", color=colour, label=label)
    axes.axhline(100 * series["constant"], color=FAINT, linestyle="--", linewidth=1.2, label="best constant")
    labels = [site.removeprefix("model.").replace("layers.", "").replace("_layernorm", "") for site in series["sites"]]
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right", fontsize=8.5)
    axes.set_ylim(0, 100)
    axes.legend(frameon=False)
    titled(axes, "Part of speech: what fresh probes read in texts that no eraser was fitted on", "norm", "accuracy, %")
    return figure


def spurious(result: Result) -> Figure:
    """SCR and TPP by method."""
    figure, (left, right) = canvas(2, 3.4)
    scores, targeted = result.series["scr"], result.series["tpp"]
    names = list(targeted)
    for which, (label, colour) in enumerate((("classifier kept", BLUE), ("trained anew", ORANGE))):
        places = [place + 0.2 * (2 * which - 1) for place in range(len(names))]
        values = [scores[name][which] for name in names]
        bars = left.barh(places, values, height=0.36, color=colour, label=label)
        left.bar_label(bars, fmt="%.2f", padding=4, fontsize=9)
    bars = right.barh(range(len(names)), [targeted[name] for name in names], color=GREEN)
    right.bar_label(bars, fmt="%.2f", padding=4)
    for axes in (left, right):
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
    left.set_xlim(min(0.0, *(value for pair in scores.values() for value in pair)) - 0.12, 1.35)
    right.set_xlim(min(0.0, *targeted.values()) - 0.02, 0.58)
    left.legend(frameon=False, loc="lower right")
    titled(left, "SCR: share of the spurious cost won back", "mean of the directions that are scored; 1 is best", "")
    titled(right, "TPP: the class erased is lost, and no other", "a probe can lose 0.5", "")
    return figure


DRAWN: dict[str, Callable[[Result], Figure]] = {
    "glove": glove,
    "gender_layer": gender_layer,
    "gender_sites": gender_sites,
    "part_of_speech": part_of_speech,
    "spurious": spurious,
}


def draw_all(found: Mapping[str, Result]) -> None:
    """Draw the picture of each experiment that was run."""
    for name, result in found.items():
        figure = DRAWN[name](result)
        figure.savefig(page.PICTURES / f"experiments-{name.replace('_', '-')}.png", metadata={"Software": None})
        plt.close(figure)
