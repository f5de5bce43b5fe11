"""Rows and labels that statistics, erasers and transformers refuse."""

import numpy as np
import torch

import leace_fast as lf
from refused.refusal import Refusal

TITLE = "Rows, labels and weights"

X, Y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
ERASER = lf.Eraser(torch.eye(2)[:, :1], torch.eye(2)[:1])


def _moments(x: object = X, y: object = Y, **options: object) -> lf.Moments:
    return lf.Moments(2, 2).update(x, y, **options)  # type: ignore[arg-type]


def _removed_twice() -> None:
    shard = _moments(X.flip(0))
    left = _moments().merge(shard).remove(shard)
    lf.Moments(2, 2).merge(left).merge(_moments(X + 1)).remove(shard)


def _many_large() -> None:
    moments = lf.Moments(1).update(torch.tensor([[1e150], [-1e150]], dtype=torch.float64))
    for _ in range(40):
        moments.merge(moments)


REFUSALS = [
    Refusal(
        "rows that hold NaN or infinity",
        'one such number would spoil the sums of all rows; `nonfinite="skip"` counts and leaves out such rows',
        lambda folder: lf.leace(lf.Moments(2, 2).update(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))),
        "NaN",
    ),
    Refusal(
        "integer or complex rows",
        "what a rounded eraser leaves of integers is not known; complex rows are for `leace_fast.concept_erasure`",
        lambda folder: _moments(X.to(torch.complex64)),
        "expected a floating dtype of 16 bits or more",
        TypeError,
    ),
    Refusal(
        "weights that, times the squares of values, leave float64",
        "sums would become infinite, and so would all moments that they are merged into",
        lambda folder: _moments(X.double() * 1e140, weight=torch.full((6,), 1e100, dtype=torch.float64)),
        "only ratios of weights count, multiply all by a constant",
    ),
    Refusal(
        "rows whose squares add up to more than float64 holds",
        "as above, by many rows or many merges",
        lambda folder: _many_large(),
        "leave the range of float64: multiply x by a constant first",
    ),
    Refusal(
        "a shard that was removed before",
        "its rows would be taken away twice; merging, copies and files remember what was removed",
        lambda folder: _removed_twice(),
        "these moments were removed before: merge them again first",
    ),
    Refusal(
        "masked arrays",
        "their mask would get lost",
        lambda folder: _moments(np.ma.masked_array(X.numpy(), X.numpy() > 0)),
        "x is a masked array, expected a plain one",
        TypeError,
    ),
    Refusal(
        "arrays of dates or durations",
        "their unit is not in the numbers; reversed, read-only and byte-swapped arrays are taken",
        lambda folder: _moments(X.numpy().astype("timedelta64[s]")),
        "holds dates or times",
        TypeError,
    ),
    Refusal(
        "arrays of long doubles, real or complex",
        "torch has no such numbers",
        lambda folder: ERASER(X.numpy().astype(np.clongdouble)),
        "which torch does not have",
        TypeError,
    ),
    Refusal(
        "names of classes as labels",
        "the transformers of `leace_fast.sklearn` take names, statistics take numbers from 0",
        lambda folder: _moments(y=np.array(list("ababab"))),
        "number the names of classes",
        TypeError,
    ),
    Refusal(
        "expanded or overlapping rows, in place",
        "rows that share memory would be erased more than once; a call without `apply_` takes them",
        lambda folder: ERASER.apply_(torch.arange(5.0).unfold(0, 2, 1)),
        "rows share memory and cannot change in place, clone it first",
    ),
    Refusal(
        "float32 rows whose columns differ in size by more than float32 holds, where an eraser is applied",
        "what reads the small ones would be infinite: scale the columns, or erase in float64",
        lambda folder: lf.Eraser(
            torch.tensor([[1e-200], [1e200]], dtype=torch.float64),
            torch.tensor([[1e200, 1e-200]], dtype=torch.float64) / 2,
        )(torch.zeros(1, 2)),
        "leave the range of float32",
    ),
]
