"""Rows and labels that statistics refuse."""

import torch

import leace_fast as lf
from refused.refusal import Refusal

TITLE = "Rows, labels and weights"

REFUSALS = [
    Refusal(
        "rows that hold NaN or infinity",
        'one such number would spoil the sums of all rows; `nonfinite="skip"` counts and leaves out such rows',
        lambda folder: lf.leace(lf.Moments(2, 2).update(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))),
        "NaN",
    ),
]
