"""Two pictures of a study: what a probe reads at each site, and what the erasure costs the language model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._extras import optional
from ._records import Loss, SiteResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER, ONE_PASS, CONSTANT, INK = "#1f6fb4", "#c8372d", "#e39a2d", "#b9bec6", "#30343b"
WIDTH = 8.4  # inches
MOST_TICKS = 24
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # keeps grid lines out of the text


def plot_probes(sites: Sequence[SiteResult], path: str | os.PathLike[str], concept: str = "the concept") -> None:
    """Draw probe accuracy by site, before and after scrubbing, with the best constant as a line; write a PNG."""
    if len(sites) == 1:
        return _plot_one_site(sites[0], path, concept)
    figure, axes = _figure(4.4)
    x = range(len(sites))
    constant = [100 * site.constant for site in sites]
    axes.plot(x, constant, color=CONSTANT, linewidth=7, solid_capstyle="butt", zorder=1)
    series = [
        ("before", BEFORE, [site.before for site in sites]),
        ("scrubbed, one site\nafter another", AFTER, [s.after for s in sites]),
    ]
    if all(site.one_pass is not None for site in sites):
        series.insert(1, ("scrubbed, all sites\nin one pass", ONE_PASS, [site.one_pass or 0.0 for site in sites]))
    ends = [("best constant", "#7d838c", constant[-1])]
    for name, colour, values in series:
        percent = [100 * value for value in values]
        style = "--" if colour == ONE_PASS else "-"
        axes.plot(x, percent, style, color=colour, marker="o", markersize=4.5, linewidth=1.8, zorder=3)
        ends.append((name, colour, percent[-1]))
    low = min(min(100 * s.after, 100 * s.constant, 100 * (1 if s.one_pass is None else s.one_pass)) for s in sites)
    axes.set_ylim(max(0.0, 10 * (low // 10) - 10), 102)
    axes.set_xlim(-0.4, len(sites) - 0.4)
    step = -(-len(sites) // MOST_TICKS)
    names = short_names([site.site for site in sites])
    axes.set_xticks(list(x)[::step], names[::step], rotation=32, ha="right", rotation_mode="anchor")
    axes.set_ylabel("held-out accuracy, %")
    _title(axes, f"How well a linear probe reads {concept}, by site")
    _label_ends(axes, ends)
    _save(figure, path)


def _plot_one_site(site: SiteResult, path: str | os.PathLike[str], concept: str) -> None:
    """Draw the accuracies of one place as bars; write a PNG."""
    figure, axes = _figure(2.4)
    rows = [("before", site.before, BEFORE), ("erased", site.after, AFTER), ("best constant", site.constant, CONSTANT)]
    if site.one_pass is not None:
        rows.insert(2, ("erased in one pass", site.one_pass, ONE_PASS))
    _bars(axes, [(name, 100 * value, colour, f"{100 * value:.1f}") for name, value, colour in rows])
    axes.set_xlim(0, 105)
    axes.set_xlabel("held-out accuracy, %")
    _title(axes, f"How well a linear probe reads {concept}")
    _save(figure, path)


def _bars(axes: Axes, rows: Sequence[tuple[str, float, str, str]]) -> None:
    """Draw horizontal bars, the first on top: name, length, colour and what is written beside it."""
    for y, (_, value, colour, text) in enumerate(reversed(rows)):
        axes.barh(y, value, color=colour, height=0.56, zorder=2)
        axes.annotate(text, (value, y), (7, 0), textcoords="offset points", va="center", color=INK, bbox=LABEL_BOX)
    axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e8eaee", zorder=0)


def plot_loss(loss: Loss, path: str | os.PathLike[str], concept: str = "the concept") -> None:
    """Draw the loss clean, with random subspaces erased and with the concept scrubbed; write a PNG."""
    figure, axes = _figure(3.2)
    random = [loss.bits(value) for value in loss.random]
    rows = [
        ("clean", loss.bits(loss.clean), CONSTANT),
        (f"{concept} scrubbed,\none site after another", loss.bits(loss.erased), AFTER),
    ]
    rows.insert(1, ("scrubbed, all sites\nin one pass", loss.bits(loss.one_pass), ONE_PASS))
    if random:
        mean = sum(random) / len(random)
        rows.insert(1, (f"random subspaces\nof the same rank\n({len(random)} seeds)", mean, BEFORE))
    clean = loss.bits(loss.clean)

    def written(name: str, value: float) -> str:
        spread = f" ({min(random):.3f} to {max(random):.3f})" if name.startswith("random") else ""
        rise = round(value - clean, 3) + 0.0  # no minus zero
        return f"{value:.3f}" + ("" if name == "clean" else f"   {rise:+.3f}") + spread

    _bars(axes, [(name, value, colour, written(name, value)) for name, value, colour in rows])
    if random:
        axes.scatter(random, [2] * len(random), s=16, color="white", edgecolors=INK, linewidths=0.7, zorder=4)
    axes.set_xlim(0, max(value for _, value, _ in rows) * 1.4)
    axes.set_xlabel("bits per byte of held-out text (lower is better)")
    _title(axes, f"What scrubbing {concept} costs the language model")
    _save(figure, path)


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without the dotted parts that all of them begin with.

    >>> short_names(["model.layers.0.norm", "model.layers.1.norm"])
    ['0.norm', '1.norm']
    """
    parts = [name.split(".") for name in names]
    common = os.path.commonprefix([p[:-1] for p in parts])
    return [".".join(p[len(common) :]) for p in parts]


def _figure(height: float) -> tuple[Figure, Axes]:
    with optional("pictures need matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    figure = Figure(figsize=(WIDTH, height), dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.12))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(CONSTANT)
    axes.grid(axis="y", color="#e8eaee", zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=12, fontweight="bold", color=INK, pad=12)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(9.5)


def _label_ends(axes: Axes, ends: Sequence[tuple[str, str, float]]) -> None:
    """Write each series' name beside its last point, moved apart where they would touch."""
    low, high = axes.get_ylim()
    at = -float("inf")
    for name, colour, value in sorted(ends, key=lambda end: end[2]):
        lines = name.count("\n") + 1
        half = 0.033 * lines * (high - low)
        at = max(value, at + half)
        axes.annotate(
            name, (1.0, at), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", color=colour, fontsize=9.5, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
        at += half


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    figure.savefig(path, facecolor="white")
