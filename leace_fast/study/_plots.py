"""Two pictures of a study: what fresh probes read at each site, and what erasing costs the language model."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._extras import optional
from ._records import Reading, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN, MAIN, CONSTANT, INK = "#1f6fb4", "#c8372d", "#b9bec6", "#30343b"
OTHERS = ("#e39a2d", "#7a5195", "#2f8f6b", "#8c6d46")  # variants beside the main one
WIDTH = 8.4  # inches
MOST_TICKS = 24
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # keeps grid lines out of the text


def plot_probes(study: Study, path: str | os.PathLike[str], concept: str = "the concept") -> None:
    """Draw what the hardest probes read at each site, clean and erased, beside the best constant; write a PNG."""
    if len(study.sites) == 1:
        return _plot_one_site(study, path, concept)
    figure, axes = _figure(4.4)
    x = range(len(study.sites))
    constant = [100 * site.constant for site in study.sites]
    axes.plot(x, constant, color="#7d838c", linewidth=2.2, linestyle=(0, (2, 1.2)), zorder=2)
    ends = [("best constant", "#7d838c", constant[-1])]
    low = min(constant)
    for name, colour in {"clean": CLEAN, **_colours(study)}.items():
        percent = [100 * reading.hardest.accuracy for reading in _readings(study, name)]
        style = "-" if name in ("clean", study.main) else "--"
        axes.plot(x, percent, style, color=colour, marker="o", markersize=4.5, linewidth=1.8, zorder=3)
        ends.append((_broken(name), colour, percent[-1]))
        low = min(low, *percent)
    axes.set_ylim(max(0.0, 10 * (low // 10) - 10), 102)
    axes.set_xlim(-0.4, len(study.sites) - 0.4)
    step = -(-len(study.sites) // MOST_TICKS)
    names = short_names([site.site for site in study.sites])
    axes.set_xticks(list(x)[::step], names[::step], rotation=32, ha="right", rotation_mode="anchor")
    axes.set_ylabel(f"accuracy on fresh {study.group}s, %")
    _title(axes, f"How well a fresh linear probe reads {concept}, by site")
    _label_ends(axes, ends)
    _save(figure, path)


def _readings(study: Study, name: str) -> list[Reading]:
    """What was read at each site of the clean model, or with a variant's erasers."""
    return [site.clean if name == "clean" else site.erased[name] for site in study.sites]


def _colours(study: Study) -> dict[str, str]:
    """A colour for each variant."""
    others = [name for name in study.variants if name != study.main]
    of_others = {name: OTHERS[number % len(OTHERS)] for number, name in enumerate(others)}
    return {name: of_others.get(name, MAIN) for name in study.variants}


def _broken(name: str) -> str:
    """A name on two lines, where it has a comma or is long."""
    first, comma, rest = name.partition(", ")
    return f"{first},\n{rest}" if comma else "\n".join(textwrap.wrap(name, 20))


def _plot_one_site(study: Study, path: str | os.PathLike[str], concept: str) -> None:
    """Draw the accuracies of one place as bars; write a PNG."""
    figure, axes = _figure(1.8 + 0.35 * len(study.variants))
    bars = [(name, colour, _readings(study, name)) for name, colour in {"clean": CLEAN, **_colours(study)}.items()]
    rows = [(name, 100 * reading.hardest.accuracy, colour) for name, colour, (reading,) in bars]
    rows.append(("best constant", 100 * study.sites[0].constant, CONSTANT))
    _bars(axes, [(name, value, colour, f"{value:.1f}") for name, value, colour in rows])
    axes.set_xlim(0, 105)
    axes.set_xlabel(f"accuracy on fresh {study.group}s, %")
    _title(axes, f"How well a fresh linear probe reads {concept}")
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


def plot_loss(study: Study, path: str | os.PathLike[str], concept: str = "the concept") -> None:
    """Draw the loss clean, with random subspaces erased and with each variant; write a PNG."""
    loss = study.loss
    if loss is None:
        raise ValueError("the study has no loss, expected one: the model predicts no next token")
    figure, axes = _figure(1.9 + 0.42 * len(loss.erased))
    random = [loss.bits(value) for value in loss.random]
    rows = [("clean", loss.bits(loss.clean), CLEAN, "")]
    if random:
        spread = f" ({min(random):.3f} to {max(random):.3f})"
        rows.append((f"random subspaces\n({len(random)} seeds)", sum(random) / len(random), CONSTANT, spread))
    colours = _colours(study)
    rows += [(_broken(name), loss.bits(nats), colours[name], "") for name, nats in loss.erased.items()]

    def written(value: float, more: str) -> str:
        rise = round(value - loss.bits(loss.clean), 3) + 0.0  # no minus zero
        return f"{value:.3f}   {rise:+.3f}{more}"

    texts = [f"{rows[0][1]:.3f}", *(written(value, more) for _, value, _, more in rows[1:])]
    _bars(axes, [(name, value, colour, text) for (name, value, colour, _), text in zip(rows, texts, strict=True)])
    if random:
        axes.scatter(
            random, [len(rows) - 2] * len(random), s=16, color="white", edgecolors=INK, linewidths=0.7, zorder=4
        )
    axes.set_xlim(0, max(value for _, value, *_ in rows) * 1.4)
    axes.set_xlabel(f"bits per byte of fresh {study.group}s (lower is better)")
    _title(axes, f"What erasing {concept} costs the language model")
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
