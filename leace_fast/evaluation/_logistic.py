"""The multinomial logistic regression of a probe, and how far its answers are to be trusted."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from .._extras import optional

PENALTY = 1e-3  # of the variance of the logits; what a probe reads for sure is bounded by the mixture
FLOOR = 1e-4  # of a standardised column's variance: directions with much less count as constant
TOLERANCE = 1e-4  # of the gradient
MAX_STEPS = 200
FOLDS = 4  # parts of the training groups, each of which says how far a fit on the others is to be trusted
SEED = 0x1EACE  # one that nobody's data were drawn with
STEPS = 40  # of that trust, from 0 to 1


@dataclass(frozen=True)
class Mixture:
    """Class shares between a constant and what a logistic regression answers: p = constant^(1 - t) * answer^t.

    Attributes:
        constant: (classes,) logarithms of the training rows' class shares, half a row added to each class.
        seen: (classes,) which of them are among the training rows; the others keep their constant.
        weight: (classes seen, dim) of the rows less `mean`.
        bias: (classes seen,).
        mean: (dim,) of the training rows.
        trust: t, from 0 to 1.
    """

    constant: Tensor
    seen: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    trust: float

    def log_shares(self, x: Tensor) -> Tensor:
        """The logarithms of the class shares at rows x (rows, dim), (rows, classes) float64."""
        answer = log_softmax(((x - self.mean) @ self.weight.mT + self.bias).double(), -1)
        logs = self.constant.expand(len(x), -1).clone()
        some = log_softmax(self.constant[self.seen], -1)
        rest = torch.logsumexp(self.constant[self.seen], -1)  # what is left by the classes that were never seen
        logs[:, self.seen] = rest + log_softmax((1 - self.trust) * some + self.trust * answer, -1)
        return logs


def fit_mixture(x: Tensor, y: Tensor, groups: Tensor, classes: int) -> Mixture:
    """Fit the regression on all rows, and how far it is trusted by cross-validation over groups.

    Args:
        x: (rows, dim) float32.
        y: (rows,) int64 classes.
        groups: (rows,) int64 numbers 0, 1, ... of groups; where there is one alone, each row is a group.
        classes: number of classes that the answers are given for.
    """
    counts = torch.bincount(y, minlength=classes)
    constant = ((counts + 0.5) / (len(y) + 0.5 * classes)).double().log()
    seen = counts > 0
    empty = torch.zeros(int(seen.sum()), x.shape[1])
    mixture = Mixture(constant, seen, empty, constant[seen].float(), torch.zeros(x.shape[1]), 0.0)
    if int(seen.sum()) == 1:
        return mixture
    count = int(groups.max()) + 1
    if count == 1:
        groups, count = torch.arange(len(y)), len(y)
    fold = (torch.randperm(count, generator=torch.Generator().manual_seed(SEED)) % FOLDS)[groups]
    mean, back = _basis(x)
    z = (x - mean) @ back
    answers = torch.empty(len(y), len(mixture.bias))
    for number in fold.unique():
        left_out = fold == number
        weight, bias = _fit(z[~left_out], y[~left_out], seen) or (mixture.weight, mixture.bias)
        answers[left_out] = z[left_out] @ weight.mT + bias
    trust = _trust(answers, y, seen, constant)
    if trust == 0:
        return mixture
    weight, bias = _fit(z, y, seen) or (mixture.weight, mixture.bias)
    return Mixture(constant, seen, weight @ back.mT, bias, mean, trust)


def _basis(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of rows, and the matrix after which they have about the identity as covariance.

    In that basis a few steps find the optimum, however the columns are correlated.
    """
    mean = x.mean(0)
    deviation = (x - mean).square().mean(0).sqrt()
    # What an eraser of float32 leaves of a column that it removes is the rounding of the rows: nothing to be read.
    least = torch.finfo(torch.float32).eps * x.norm(dim=1).median()
    scale = torch.where(deviation > least, 1 / deviation, torch.zeros_like(deviation))
    z = (x - mean) * scale
    covariance = (z.mT @ z / len(z)).double()
    covariance.diagonal().add_(FLOOR)
    factor, eye = torch.linalg.cholesky(covariance), torch.eye(x.shape[1], dtype=torch.float64)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    return mean, scale[:, None] * inverse.mT.float()


def _fit(z: Tensor, y: Tensor, seen: Tensor) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of each class that was seen, None where these rows are all of one class."""
    classes = y.unique()
    if len(classes) < 2:
        return None
    model = _logistic_regression(len(y))
    with _one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few steps: what they leave is too little to matter
        model.fit(z.numpy(), y.numpy())
    weight, bias = torch.from_numpy(model.coef_).float(), torch.from_numpy(model.intercept_).float()
    if len(classes) == 2:  # of the second over the first
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    # A class that these rows lack has the share of half a row.
    all_bias = (torch.logsumexp(bias, 0) - math.log(2 * len(y))).repeat(len(seen))
    all_weight = weight.new_zeros(len(seen), z.shape[1])
    all_weight[classes], all_bias[classes] = weight, bias
    return all_weight[seen], all_bias[seen]


def _trust(logits: Tensor, y: Tensor, seen: Tensor, constant: Tensor) -> float:
    """The exponent t of a mixture at which rows of these logits (rows, classes seen) are likeliest."""
    answer, shares = log_softmax(logits.double(), -1), log_softmax(constant[seen], -1)
    places = (seen.cumsum(0) - 1)[y][:, None]
    steps = [step / STEPS for step in range(STEPS + 1)]
    fits = [log_softmax((1 - t) * shares + t * answer, -1).gather(1, places).mean().item() for t in steps]
    return steps[max(range(len(fits)), key=fits.__getitem__)]


def _logistic_regression(rows: int):
    with optional("linear probes need scikit-learn"):
        from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / (PENALTY * rows), max_iter=MAX_STEPS, tol=TOLERANCE)


def _one_thread():
    """Its products are small: with several threads they take several times as long."""
    with optional("linear probes need threadpoolctl"):
        from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
