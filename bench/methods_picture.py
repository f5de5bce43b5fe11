"""The picture of docs/methods.md: two classes in two dimensions, before and after five methods.

`python bench/methods_picture.py [PNG]`

What is drawn are the fitted rows. The classifiers are trained on fresh rows, and right on others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import leace_fast as lf

DEFAULT = Path(__file__).parent.parent / "docs" / "images" / "methods.png"
COLOURS = ("#1f6fb4", "#c8372d")
FAINT, INK = "#b9bec6", "#30343b"
ROWS, FRESH = 500, 20_000
REACH = 5.0


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two classes whose means differ along one direction while another one tells them best."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.7, 0.45])
    turn = torch.tensor([[0.80, 0.60], [-0.60, 0.80]], dtype=torch.float64)
    gap = torch.tensor([0.35, 1.15], dtype=torch.float64)
    return noise @ turn + (2 * y[:, None] - 1) * gap, y


def maps(x: Tensor, y: Tensor) -> dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Return what each method makes of rows and their classes, fitted on these, and a line that says what it does."""
    moments = lf.Moments(2, 2).update(x, y)
    batches = [(x, y)]
    leace, mean_projection = lf.leace(moments), lf.methods.mean_projection(moments)
    inlp, rlace = lf.methods.inlp(batches, max_iterations=1), lf.methods.rlace(batches)
    return {
        "before": ("two classes and their means", lambda x, _: x),
        "LEACE": ("class means equal, least change", lambda x, _: leace(x)),
        "mean projection": ("orthogonal: class means equal", lambda x, _: mean_projection(x)),
        "INLP, first step": ("off the best classifier", lambda x, _: inlp(x)),
        "R-LACE": ("against the best classifier left", lambda x, _: rlace(x)),
        "swap": ("each class takes the other's place", lf.methods.swap(batches)),
    }


def accuracy(x: Tensor, y: Tensor) -> float:
    """Return the accuracy on one half of the rows of a logistic regression of the other half."""
    half = len(y) // 2
    probe = LogisticRegression(C=100.0).fit(x[:half].numpy(), y[:half].numpy())
    return float(probe.score(x[half:].numpy(), y[half:].numpy()))


def draw(axes: Axes, name: str, what: str, before: Tensor, after: Tensor, y: Tensor, right: float) -> None:
    """Draw one panel: rows, where they came from, the class means, and how often a fresh classifier is right."""
    if name != "before":
        axes.scatter(*before.mT, s=3, color=FAINT, alpha=0.5, linewidths=0, zorder=1)
    # Rows alternate between the classes: neither is drawn over the other.
    axes.scatter(*after.mT, s=7, color=[COLOURS[label] for label in y.tolist()], alpha=0.45, linewidths=0, zorder=2)
    # The second mean is drawn smaller: it shows inside the first one where the two coincide.
    for label, colour, size in ((0, COLOURS[0], 150), (1, COLOURS[1], 55)):
        mean = after[y == label].mean(0)
        axes.scatter(*mean[:, None], s=size, color=colour, edgecolors="white", linewidths=1.6, zorder=4)
    change = float((after - before).square().sum(1).mean() / (before - before.mean(0)).square().sum(1).mean())
    facts = f"a fresh classifier is right on {100 * right:.0f} %"
    if name != "before":
        facts += f", change {100 * change:.0f} %"
    axes.set_title(name, loc="left", color=INK, fontsize=12, fontweight="bold", pad=19)
    axes.text(0, 1.025, what, transform=axes.transAxes, color="#7d838c", fontsize=9.5)
    axes.text(0.5, -0.045, facts, transform=axes.transAxes, color=INK, fontsize=9.5, ha="center", va="top")
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH * 0.8, REACH * 0.8), xticks=[], yticks=[], aspect="equal")
    for side in axes.spines.values():
        side.set_color(FAINT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("png", type=Path, nargs="?", default=DEFAULT, help="file to write (default: %(default)s)")
    path = parser.parse_args().png
    (x, y), (fresh, classes) = rows(ROWS, seed=3), rows(FRESH, seed=4)
    figure, grid = plt.subplots(2, 3, figsize=(11.0, 7.4), dpi=130)
    for axes, (name, (what, apply)) in zip(grid.flat, maps(x, y).items(), strict=True):
        draw(axes, name, what, x, apply(x, y), y, accuracy(apply(fresh, classes), classes))
    figure.subplots_adjust(left=0.015, right=0.985, top=0.92, bottom=0.045, wspace=0.05, hspace=0.3)
    figure.savefig(path, metadata={"Software": None})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
