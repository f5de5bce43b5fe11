"""Linear probes: how well a linear classifier still reads the concept from held-out rows."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ..statistics import IGNORE

PENALTY = 1e-2  # of the squared weights: as accurate as smaller ones here, and less of it is noise
TOLERANCE = 1e-3  # of the gradient: the accuracy has settled long before
MAX_STEPS = 200


class Probe(NamedTuple):
    """Held-out accuracy of a linear probe, beside that of the best constant answer.

    The constant is the most frequent class of the training rows; among the test rows another may be more frequent.
    """

    accuracy: float  # share of the test rows that the probe names rightly
    constant: float  # the same for always answering the most frequent class of the training rows
    train_rows: int
    test_rows: int


def labelled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return x as (rows, dim) float32 and y as (rows,) int64, without the rows whose label is -100.

    Raises:
        ValueError: the shapes of x and y do not fit, or a row is not finite.
    """
    if x.ndim < 2 or x.shape[:-1] != y.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}, expected (..., dim) and (...)")
    kept = y != IGNORE
    x, y = x[kept].float(), y[kept].long()
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or Inf, expected finite rows: leave them out before probing")
    return x, y


def best_constant(y: Tensor, test_y: Tensor) -> float:
    """Return the share of `test_y` (rows,) that is the most frequent class of `y` (rows,).

    >>> best_constant(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0, 2]))
    0.5
    """
    return (test_y == torch.bincount(y).argmax()).double().mean().item()


def linear_probe(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> Probe:
    """Train a multinomial logistic regression on (x, y) and return its accuracy on the test rows.

    Features are standardised with the training rows' mean and standard deviation.

    Args:
        x: (..., dim), any floating dtype; computed in float32.
        y: (...) integer classes, -100 for rows to leave out.
        test_x, test_y: the same, held out.

    Raises:
        ValueError: shapes do not fit, a row is not finite, or no rows are left.

    >>> x, y = torch.randn(400, 4), torch.arange(400) % 2
    >>> x[:, 0] += 6 * y
    >>> linear_probe(x[:200], y[:200], x[200:], y[200:]).accuracy > 0.95
    True
    """
    x, y = labelled(x, y)
    test_x, test_y = labelled(test_x, test_y)
    if x.shape[-1] != test_x.shape[-1]:
        raise ValueError(f"the test rows have width {test_x.shape[-1]}, expected {x.shape[-1]} as in training")
    if not len(y) or not len(test_y):
        raise ValueError(f"got {len(y)} training and {len(test_y)} test rows with a label, expected some of each")
    constant = best_constant(y, test_y)
    if len(y.unique()) == 1:
        return Probe(constant, constant, len(y), len(test_y))
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    model = _logistic_regression(len(y))
    with warnings.catch_warnings():
        # Enough steps for an accuracy; the last digits of the weights do not matter here.
        warnings.simplefilter("ignore")
        model.fit(((x - mean) / scale).numpy(), y.numpy())
    accuracy = model.score(((test_x - mean) / scale).numpy(), test_y.numpy())
    return Probe(float(accuracy), constant, len(y), len(test_y))


def _logistic_regression(rows: int):
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError("linear probes need scikit-learn: pip install 'leace-fast[audit]'") from error
    return LogisticRegression(C=1 / (PENALTY * rows), max_iter=MAX_STEPS, tol=TOLERANCE)
