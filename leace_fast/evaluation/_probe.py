"""Linear probes: what a linear classifier still reads of the concept in rows that it was not trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..statistics import IGNORE
from ._intervals import NOTHING, Interval, group_intervals
from ._logistic import Mixture, fit_mixture

ROUNDED = 5e-5  # nats that are written as 0
LARGEST = 2.0**54  # of a number in x: sums of squares of many columns stay below float32's 2**128


class Probe(NamedTuple):
    """What a linear probe reads in the test rows, beside the best constant answer.

    The constant answer is made of the training rows: their most frequent class, or their class shares. The intervals
    cover 95 %, by a bootstrap over the test groups; with fewer than 6 groups nothing can be said and they are all
    numbers.

    Attributes:
        accuracy: share of the test rows that the probe names rightly.
        constant: the same for always answering the most frequent class of the training rows.
        nats: cross-entropy that the probe gains over the constant, in nats a test row: what it reads of the concept
            for certain. Below 0 where the probe has learned what does not hold in the test rows.
        accuracy_interval, nats_interval: (lower end, upper end).
        train_rows, test_rows: labelled rows.
        train_groups, test_groups: texts, speakers or the like that these rows are of; rows where none were given.
        in_sample: whether the erasers may have been fitted on these rows: then the figures say nothing of other rows.
    """

    accuracy: float
    constant: float
    nats: float
    accuracy_interval: Interval
    nats_interval: Interval
    train_rows: int
    test_rows: int
    train_groups: int
    test_groups: int
    in_sample: bool = False

    @property
    def leaks(self) -> bool:
        """Whether the concept is read for sure: the lower end of `nats_interval` is above 0."""
        return self.nats_interval[0] > 0

    def __str__(self) -> str:
        (low, high), (least, most) = self.nats_interval, self.accuracy_interval
        nats, accuracy = f"[{low:+.4f}, {high:+.4f}]", f"[{least:.3f}, {most:.3f}]"
        if self.nats_interval == NOTHING:
            nats = accuracy = "[too few groups to tell]"
        elif max(abs(low), abs(high)) < ROUNDED:
            nats = "[it found nothing to go by]"
        above = self.nats_interval != NOTHING and least > self.constant
        told = ", leaks" if self.leaks else ", accuracy above the constant" if above else ""
        return (
            f"{'in-sample ' if self.in_sample else ''}probe {self.accuracy:.3f} {accuracy}, best constant "
            f"{self.constant:.3f}, {self.nats:+.4f} nats {nats}, {self.train_groups:,} groups to train and "
            f"{self.test_groups:,} to test{told}"
        )


def linear_probe(
    x: Tensor,
    y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    groups: Tensor | None = None,
    train_groups: Tensor | None = None,
    in_sample: bool = False,
) -> Probe:
    """Train a multinomial logistic regression on (x, y) and measure what it reads in the test rows.

    Features are standardised, and decorrelated, with the training rows' statistics. How far the probe departs from the
    training rows' class shares is chosen by cross-validation over the training groups, so that one that has found
    nothing answers as the constant does. Rows that are alike, as those of a text, must be in one group.

    Args:
        x: (..., dim), any floating dtype; computed in float32.
        y: (...) integer classes, -100 for rows to leave out.
        test_x, test_y: the same, held out.
        groups: (...) int64 numbers of the groups that the test rows are of; None where each row is one.
        train_groups: the same of the training rows.
        in_sample: whether erasers were fitted on these rows: what `Probe` then says.

    Raises:
        ValueError: shapes do not fit, a row is not finite, no rows are left, or a group is in training and test.
        TypeError: groups are no integers.

    >>> x, y = torch.randn(400, 4), torch.arange(400) % 2
    >>> x[:, 0] += 6 * y
    >>> probe = linear_probe(x[:200], y[:200], x[200:], y[200:])
    >>> probe.accuracy > 0.95, probe.leaks
    (True, True)
    """
    if groups is not None and train_groups is not None:
        check_apart(train_groups, groups)
    x, y, of_train = _labelled(x, y, train_groups)
    test_x, test_y, of_test = _labelled(test_x, test_y, groups)
    if x.shape[-1] != test_x.shape[-1]:
        raise ValueError(f"the test rows have width {test_x.shape[-1]}, expected {x.shape[-1]} as in training")
    if not len(y) or not len(test_y):
        raise ValueError(f"got {len(y)} training and {len(test_y)} test rows with a label, expected some of each")
    probe = fit_mixture(x, y, of_train, int(max(y.max(), test_y.max())) + 1)
    right, gained = _scores(probe, test_x, test_y)
    accuracy, nats = group_intervals(torch.stack([right, gained], 1), of_test)
    return Probe(
        accuracy=right.mean().item(),
        constant=best_constant(y, test_y),
        nats=gained.mean().item(),
        accuracy_interval=accuracy,
        nats_interval=nats,
        train_rows=len(y),
        test_rows=len(test_y),
        train_groups=int(of_train.max()) + 1,
        test_groups=int(of_test.max()) + 1,
        in_sample=in_sample,
    )


def best_constant(y: Tensor, test_y: Tensor) -> float:
    """Return the share of `test_y` (rows,) that is the most frequent class of `y` (rows,).

    >>> best_constant(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0, 2]))
    0.5
    """
    return (test_y == torch.bincount(y).argmax()).double().mean().item()


def check_apart(train: Tensor, test: Tensor) -> None:
    """Raise ValueError for groups that are in training and test."""
    if both := sorted(set(train.unique().tolist()) & set(test.unique().tolist())):
        listed = ", ".join(map(str, both[:8])) + (" ..." if len(both) > 8 else "")
        raise ValueError(
            f"{'group' if len(both) == 1 else 'groups'} {listed} came to train the probe and to test it: a group must "
            "be in one of them alone, or the probe is tested on what it has seen"
        )


def _scores(probe: Mixture, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row (rows,) float64: 1 where the probe names it rightly, and the nats it gains over the constant."""
    logs = probe.log_shares(x)
    gained = logs.gather(1, y[:, None])[:, 0] - probe.constant[y]
    return (logs.argmax(1) == y).double(), gained


def _labelled(x: Tensor, y: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """x as (rows, dim) float32 and y as (rows,) int64 without the rows whose label is -100; groups as 0, 1, ..."""
    if x.ndim < 2 or x.shape[:-1] != y.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}, expected (..., dim) and (...)")
    kept = y != IGNORE
    x, y = x[kept].float(), y[kept].long()
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or Inf, expected finite rows: leave them out before probing")
    if len(x) and (largest := float(x.abs().max())) > LARGEST:
        raise ValueError(f"x holds numbers of {largest:.3g}, whose squares overflow float32: divide x before probing")
    if len(y) and int(y.min()) < 0:
        raise ValueError(f"y holds the class {int(y.min())}, expected 0 or more, or {IGNORE} for rows to leave out")
    if groups is None:
        return x.cpu(), y.cpu(), torch.arange(len(y))
    if groups.is_floating_point() or groups.shape != kept.shape:
        wrong = TypeError if groups.is_floating_point() else ValueError
        raise wrong(f"groups are {groups.dtype} of shape {tuple(groups.shape)}, expected integers {tuple(kept.shape)}")
    return x.cpu(), y.cpu(), groups[kept].unique(return_inverse=True)[1].cpu()
