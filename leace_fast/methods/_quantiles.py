"""Methods of quantiles, from sketches of the rows: `median`, `swap` and `normalize_quantiles`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .._extras import optional
from ..erasers import Eraser, QuantileNormalizer, Report
from ..fitting import RowStream, Summary, check_count, warn_of

Batches = Iterable[tuple[Tensor, Tensor]]
SKETCH_SIZE = 2000  # of a KLL sketch: quantiles are off by 0.14 % of the rows at most, at 99 % confidence
POINTS = 257


def median(batches: Batches, direction: Tensor | None = None, *, quantile: float = 0.5) -> Eraser:
    """Return `x - v (v' x - q)`: the coordinate along a direction set to its median q, or to another quantile.

    The mean of a coordinate with far outliers says little of it; among constants, the median changes it least in
    absolute value. Along the difference of two class means, the default, it erases the concept as `orth` does.

    Args:
        batches: (x, y) with integer labels, -100 for rows to leave out; gone over three times.
        direction: (d,) v, at any length; by default from the mean of the first class with rows to that of the second.
        quantile: 0 to 1.

    Raises:
        TypeError: batches can be gone over once only.
        ValueError: the direction does not fit or is missing with more than two classes, or quantile is out of range.
        ImportError: the sketches need datasketches.

    Guarantees: two class means equal; the coordinate constant.

    Source: quantiles by KLL sketches, Karnin, Lang and Liberty 2016, https://arxiv.org/abs/1603.05346.

    >>> y = torch.arange(1000) % 2
    >>> x = torch.randn(1000, 3) + 4 * y[:, None]
    >>> eraser = median([(x, y)])
    >>> after = eraser(x) @ eraser.left.float()
    >>> bool((after - (x @ eraser.left.float()).median()).abs().max() < 0.1)
    True
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}, expected 0 to 1")
    rows = RowStream(batches)
    summary = rows.summary()
    axis = _axis(summary, direction)
    sketches = _Sketches(1, 1)
    for x, _ in rows:
        sketches.update((x - summary.mean) @ axis, torch.zeros(len(x), dtype=torch.int64))
    held = sketches.quantiles([quantile])[0, 0, 0].to(axis)
    mean = summary.mean + held * axis[:, 0]
    change = sum(float(((x - mean) @ axis).square().sum()) for x, _ in rows) / summary.rows
    report = Report("median", len(mean), 1, summary.rows, change, not_erased=summary.hidden())
    return Eraser(axis, axis.mT, mean, method="median", report=report)


def swap(batches: Batches, direction: Tensor | None = None, *, points: int = POINTS) -> QuantileNormalizer:
    """Return the map that exchanges two classes along a direction: each row gets the other class's like quantile.

    Nothing else changes, and doing it with the labels exchanged undoes it.

    Take care: a row keeps its rank among those of its class. Where positions are pooled of which few tell the class,
    the other class has ordinary rows at that rank: the distributions and their means change places, and the rows that
    told the class do not (the second example). `switch`, or `leace(moments).scaled(2.0)`, reflects every row.

    Args:
        batches: (x, y) with integer labels of two classes, -100 for rows to leave out; gone over three times.
        direction: as in `median`.
        points: quantiles that are kept of each class.

    Raises:
        TypeError, ImportError: as in `median`.
        ValueError: more than two classes have rows, or as in `median`.

    Guarantees: distributions along the direction exchanged, ranks within a class kept.

    Source: the optimal map on a line, `F_other^-1(F_own(u))`, docs/methods.md; quantiles as in `median`.

    >>> y = torch.arange(1000) % 2
    >>> x = torch.randn(1000, 3) + 4 * y[:, None]
    >>> out = swap([(x, y)])(x, y)
    >>> bool(out[y == 0].mean() > 3), bool(out[y == 1].mean() < 1)
    (True, True)
    >>> from leace_fast import Moments
    >>> from leace_fast.methods import switch
    >>> y = torch.arange(10_000) % 2
    >>> x = torch.randn(10_000, 4, generator=torch.Generator().manual_seed(0))
    >>> tells = torch.arange(10_000) % 10 < 2  # a fifth of the positions: their class is the sign of column 0
    >>> x[tells, 0] += 6 * (2.0 * y[tells] - 1)
    >>> swapped, reflected = swap([(x, y)])(x, y), switch(Moments(4, 2).update(x, y))(x)
    >>> [float((out * x < 0)[tells, 0].float().mean()) for out in (swapped, reflected)]  # share that changed sides
    [0.0, 1.0]
    """
    rows = RowStream(batches)
    summary = rows.summary()
    present = (summary.counts > 0).nonzero().flatten()
    if len(present) != 2:
        raise ValueError(f"{len(present)} classes have rows, a swap needs two")
    axis = _axis(summary, direction)
    source = _tables(rows, summary, axis, points)
    goal = source.clone()
    goal[present] = source[present.flip(0)]
    return _reported("swap", rows, summary, source, goal, axis)


def normalize_quantiles(batches: Batches, to: int | None = None, *, points: int = POINTS) -> QuantileNormalizer:
    """Return the map that gives every column the same distribution in all classes, or that of one class.

    The common quantiles are the mean of the classes', by their shares: the barycentre, which changes x least. What
    columns tell together stays: `quadratic` removes that to the second order, this each column's whole distribution.

    Args:
        batches: (x, y) with integer labels, -100 for rows to leave out; gone over three times.
        to: the class to take after, or None for the barycentre.
        points: quantiles that are kept of each class and column.

    Raises:
        TypeError, ImportError: as in `median`.
        ValueError: class `to` has no rows, or as in `median`.

    Warns:
        UserWarning: a class has no rows.

    Guarantees: distributions of each column equal.

    Source: coordinatewise quantile normalisation, Belrose et al. 2024, https://arxiv.org/abs/2402.04362, section 3.

    >>> y = torch.arange(2000) % 2
    >>> x = torch.rand(2000, 2) * (1 + y[:, None])
    >>> out = normalize_quantiles([(x, y)])(x, y)
    >>> bool((out[y == 0].quantile(0.9, 0) - out[y == 1].quantile(0.9, 0)).abs().max() < 0.05)
    True
    """
    rows = RowStream(batches)
    summary = rows.summary()
    if to is not None and (isinstance(to, bool) or not 0 <= to < len(summary.counts) or not summary.counts[to]):
        raise ValueError(f"to is {to!r}, expected a class that has rows")
    warn_of([f"class {j}: it has no rows" for j in (summary.counts == 0).nonzero().flatten().tolist()])
    source = _tables(rows, summary, None, points)
    shares = (summary.counts / summary.rows).to(source)
    common = torch.einsum("k,kmq->mq", shares, source) if to is None else source[to]
    present = (summary.counts > 0)[:, None, None]
    goal = torch.where(present.to(source.device), common.expand_as(source), source)
    return _reported("normalize_quantiles", rows, summary, source, goal)


def _reported(
    method: str, rows: RowStream, summary: Summary, source: Tensor, goal: Tensor, axes: Tensor | None = None
) -> QuantileNormalizer:
    """Return the map of these quantiles with a report."""
    moving = QuantileNormalizer(source, goal, axes)
    change = sum(float((moving(x, y) - x).square().sum()) for x, y in rows) / summary.rows
    report = Report(method, len(summary.mean), source.shape[1], summary.rows, change, not_erased=summary.hidden())
    return QuantileNormalizer(source, goal, axes, method=method, report=report)


def _axis(summary: Summary, direction: Tensor | None) -> Tensor:
    """Return the direction as (d, 1) of unit length."""
    if direction is None:
        present = (summary.counts > 0).nonzero().flatten()
        if len(present) != 2:
            raise ValueError(f"{len(present)} classes have rows, two give a direction: say which with direction=")
        direction = summary.class_means[present[1]] - summary.class_means[present[0]]
    if direction.shape != summary.mean.shape:
        raise ValueError(f"direction has shape {tuple(direction.shape)}, expected {tuple(summary.mean.shape)}")
    length = torch.linalg.vector_norm(direction.double())
    if not 0 < float(length) < float("inf"):
        raise ValueError(f"direction has length {float(length)}, expected a finite one above 0")
    return (direction.to(summary.mean) / length)[:, None]


def _tables(rows: RowStream, summary: Summary, axes: Tensor | None, points: int) -> Tensor:
    """Return the quantiles (k, m, points) of each class along axes, or of each column; 0 for a class without rows."""
    check_count("points", points, least=2)
    centre = summary.mean if axes is None else summary.mean @ axes
    sketches = _Sketches(len(summary.counts), len(centre))
    for x, y in rows:
        # Sketches hold float32: about the mean, so that an offset costs no digit.
        sketches.update((x if axes is None else x @ axes) - centre, y)
    tables = sketches.quantiles(torch.linspace(0, 1, points, dtype=torch.float64).tolist()).to(centre)
    return torch.where((summary.counts > 0)[:, None, None].to(centre.device), tables + centre[:, None], 0.0)


class _Sketches:
    """KLL sketches of each class and coordinate."""

    def __init__(self, classes: int, coordinates: int) -> None:
        with optional("quantiles need datasketches"):
            from datasketches import vector_of_kll_floats_sketches  # pyright: ignore[reportAttributeAccessIssue]
        self._sketches = [vector_of_kll_floats_sketches(SKETCH_SIZE, coordinates) for _ in range(classes)]

    def update(self, x: Tensor, y: Tensor) -> None:
        for label in y.unique().tolist():
            self._sketches[label].update(x[y == label].float().cpu().numpy())

    def quantiles(self, at: list[float]) -> Tensor:
        """Return (k, m, q), zeros for a class without rows."""
        found = [torch.zeros(0)] * len(self._sketches)
        for label, sketches in enumerate(self._sketches):
            empty = bool(sketches.is_empty().any())
            shape = (len(sketches.is_empty()), len(at))
            found[label] = torch.zeros(shape) if empty else torch.from_numpy(sketches.get_quantiles(at)).reshape(shape)
        return torch.stack(found).double()
