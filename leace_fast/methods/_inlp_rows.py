"""INLP with classifiers that moments do not give: logistic regression and support vector machines, by passes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .._extras import optional
from ..erasers import Eraser, Report
from ..fitting import RowStream, Summary

EPOCHS = 5
LOSSES = {"logistic": "log_loss", "svm": "hinge"}


def null_spaces(
    batches: Iterable[tuple[Tensor, Tensor]],
    classifier: str,
    *,
    rank: int | None,
    tolerance: float,
    max_iterations: int,
    seed: int,
) -> Eraser:
    """Return the projection about the mean off the weights of classifiers; see `inlp`.

    Each classifier is scikit-learn's averaged stochastic gradient descent, five passes over the batches, of the rows
    projected and in units of their deviations; with more than two classes, one against the rest.
    """
    rows = RowStream(batches)
    summary = rows.summary()
    dim = len(summary.mean)
    dropped = summary.mean.new_zeros(dim, 0)
    accuracy = 1.0
    for iteration in range(max_iterations):
        weights, accuracy = _classifier(rows, summary, dropped, LOSSES[classifier], seed + iteration)
        if accuracy < summary.majority + max(tolerance, 0.5 / summary.rows):
            break
        room = min(rank or dim, dim) - dropped.shape[1]
        new = _new_directions(weights, dropped)[:, :room]
        if not new.shape[1]:
            break
        dropped = torch.cat([dropped, new], 1)
    found = f"the last classifier had an accuracy of {accuracy:.4f}, the best constant answer {summary.majority:.4f}"
    report = Report(
        method="inlp",
        dim=dim,
        rank=dropped.shape[1],
        rows=summary.rows,
        change=_change(rows, summary, dropped),
        not_erased=(found, *summary.hidden()),
    )
    return Eraser(dropped, dropped.mT, summary.mean, method="inlp", report=report)


def _classifier(rows: RowStream, summary: Summary, dropped: Tensor, loss: str, seed: int) -> tuple[Tensor, float]:
    """Return a classifier's weights (m, d), in the units of x, and its accuracy on the rows it was fitted on."""
    with optional("INLP on rows needs scikit-learn"):
        from sklearn.linear_model import SGDClassifier
    classes = (summary.counts > 0).nonzero().flatten().numpy()
    scale = torch.where(summary.deviation > 0, summary.deviation, 1.0)

    def projected(x: Tensor):
        centred = x - summary.mean
        return ((centred - (centred @ dropped) @ dropped.mT) / scale).cpu().numpy()

    model = SGDClassifier(loss=loss, average=True, random_state=seed)
    for _ in range(EPOCHS):
        for x, y in rows:
            model.partial_fit(projected(x), y.cpu().numpy(), classes=classes)
    right = sum(int((torch.from_numpy(model.predict(projected(x))) == y.cpu()).sum()) for x, y in rows)
    weights = torch.from_numpy(model.coef_).to(scale) / scale
    return weights, right / summary.rows


def _new_directions(weights: Tensor, dropped: Tensor) -> Tensor:
    """Return an orthonormal basis of weights (m, d) off what was dropped before."""
    left = weights.mT
    for _ in range(2):
        left = left - dropped @ (dropped.mT @ left)
    vectors, values, _ = torch.linalg.svd(left, full_matrices=False)
    return vectors[:, values > 1e-9 * values[:1]]


def _change(rows: RowStream, summary: Summary, dropped: Tensor) -> float:
    return sum(float(((x - summary.mean) @ dropped).square().sum()) for x, _ in rows) / summary.rows
