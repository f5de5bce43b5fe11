"""Contrasts: the directions beyond the class means in which classes differ from group to group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .._warnings import warn
from ..statistics import Cells, Moments
from ._leak import Means, outside
from ._whitening import Whitening

LEAST_ROWS = 10  # of a cell of group and class that gives a contrast
MOST_CONTRASTS = 20  # contrasts that "auto" looks at
AUTO = 0.5  # share of what these take away that "auto" is content with
LITTLE_BESIDE_NOISE = 0.5  # share of the noise of counts, which varies by about a third in few columns
RESOLVED = 1e-10  # eigenvalues below this share of the largest are rounding

Contrasts = int | Literal["auto"]


def check_contrasts(contrasts: object, every: Sequence[Moments], rank: int | None) -> list[Cells]:
    """Return the cells that contrasts are taken from, none where none are wanted.

    Raises:
        ValueError: `contrasts` is neither "auto" nor an integer >= 0, comes beside a rank, or the rows came without
            groups.
    """
    good = contrasts == "auto" or (isinstance(contrasts, int) and not isinstance(contrasts, bool) and contrasts >= 0)
    if not good:
        raise ValueError(f"contrasts is {contrasts!r}, expected an integer >= 0, or 'auto'")
    if not contrasts:
        return []
    if rank is not None:
        raise ValueError(f"got rank={rank} and contrasts={contrasts!r}, expected one: contrasts add to the full rank")
    found = [cells for one in every if (cells := one.cells) is not None]
    if not found:
        raise ValueError("contrasts need groups: the text, speaker or module of each row, as update(x, y, groups=...)")
    return found


def warn_of_none() -> None:
    """Warn that there are no contrasts, although some were asked for."""
    warn(
        f"there are no contrasts: they come from groups that hold several classes, with {LEAST_ROWS} rows of each; "
        "give such groups, or contrasts=0",
        about="no contrasts",
    )


def contrasts_of(every: Sequence[Cells], white: Whitening, basis: Tensor, most: int) -> Tensor:
    """Return the leading directions (d, r) in which classes differ by group, orthonormal and orthogonal to a basis.

    They are the left singular vectors of `(I - U U') W [sqrt(n_gk) (mean_gk - mean_g)]`, over cells of 10 rows or more.

    Args:
        every: counts and means by group and class, of each concept.
        white: the metric W.
        basis: U (d, r0) orthonormal, whitened: the directions of the class means.
        most: so many, or as many as there are.
    """
    columns = outside(white.whiten(torch.cat([_deviations(cells) for cells in every], 1)), basis)
    values, vectors = torch.linalg.eigh(columns @ columns.mT)
    most = min(most, int((values > RESOLVED * values[-1].clamp_min(1e-300)).sum()), len(values) - basis.shape[1])
    leading = vectors.flip(1)[:, :most]
    # Once more: eigenvectors are orthogonal to the basis but for rounding, which a small eigenvalue magnifies.
    return torch.linalg.qr(outside(leading, basis))[0]


def crossed_leak(every: Sequence[Cells], white: Whitening, most: int = MOST_CONTRASTS) -> list[float]:
    """Return the nats left on one half of the groups by what the other half gives, with 0, 1, ... contrasts.

    The mean of both ways. The noise of the half that is looked at is in it, so that its level is up to twice too high;
    how it falls with the number of contrasts is what it is for.

    Args:
        every: counts and means by group and class, of each concept.
        white: the metric.
        most: contrasts.

    Raises:
        ValueError: there are fewer than two groups.
    """
    halves = [_halves(cells) for cells in every]
    curves = [_left_over([half[i] for half in halves], [half[1 - i] for half in halves], white, most) for i in (0, 1)]
    return [(one + two) / 2 for one, two in zip(*curves, strict=False)]


def chosen(leaks: Sequence[float], every: Sequence[Cells], rank: int) -> int:
    """Return the smallest number of contrasts that takes away half of what any number of them would.

    What the noise of counts leaves in the half that is looked at is no difference between groups, and does not count:
    where there is little else, no contrasts are taken.

    Args:
        leaks: as `crossed_leak` returns them.
        every: counts and means by group and class, of each concept.
        rank: of what is erased without contrasts.
    """
    # Of the half that is looked at and of the one that was fitted, for each direction that is not erased.
    noise = sum(2 * (len(one.classes.unique()) - 1) / float(one.counts.sum()) for one in every)
    dim = every[0].means.shape[1]
    rest = [leak - noise * (dim - rank - number) for number, leak in enumerate(leaks)]
    if rest[0] <= LITTLE_BESIDE_NOISE * noise * (dim - rank):
        return 0
    enough = rest[0] - AUTO * (rest[0] - min(rest))
    return next(number for number, leak in enumerate(rest) if leak <= enough)


def _left_over(fit: Sequence[Cells], seen: Sequence[Cells], white: Whitening, most: int) -> list[float]:
    """Return the nats that are left on some cells by erasers of others, with 0, 1, ... contrasts."""
    differences = white.whiten(torch.cat([Means.of(cells).differences for cells in fit], 1))
    vectors, values, _ = torch.linalg.svd(differences, full_matrices=False)
    basis = vectors[:, values > RESOLVED * values[0].clamp_min(1e-300)]
    rest = outside(white.whiten(torch.cat([Means.of(cells).differences for cells in seen], 1)), basis)
    taken = (contrasts_of(fit, white, basis, most).mT @ rest).square().sum(1)
    left = rest.square().sum() - torch.cat([taken.new_zeros(1), taken.cumsum(0)])
    return (0.5 * left).tolist()


def _halves(cells: Cells) -> tuple[Cells, Cells]:
    """Return the cells of every other group, by falling weight, and those of the rest."""
    ids = cells.ids
    if len(ids) < 2:
        raise ValueError(f"the rows come from {len(ids)} group, expected at least two to take contrasts from")
    order = ids[cells.group_weights.argsort(descending=True, stable=True)]
    return cells.of_groups(order[::2]), cells.of_groups(order[1::2])


def _deviations(cells: Cells) -> Tensor:
    """Return the mean of each cell less that of its group, times the root of its rows (d, m)."""
    kept = cells.counts >= LEAST_ROWS
    apart = cells.means - cells.group_means[cells.places]
    return (apart * cells.counts.sqrt()[:, None])[kept].mT
