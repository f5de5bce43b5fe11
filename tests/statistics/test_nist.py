"""Certified values of the US National Institute of Standards and Technology: analysis of variance, and deviations.

Source: NIST Statistical Reference Datasets, https://www.itl.nist.gov/div898/strd/; the data of the analyses of
variance come with scipy, the deviations are built from their definition.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import scipy
import torch
from torch import Tensor

from leace_fast import Moments

FOLDER = Path(scipy.__file__).parent / "stats" / "tests" / "data" / "nist_anova"
BATCHES = [1, 7, 64, None]
PARTS = [1, 2, 8, 37]
# Correct digits of F. Below the first three, rounding the data to float64 leaves 0.2 to 0.3 digits more than this.
DIGITS = {
    "SmLs01": 14.0,
    "SmLs02": 14.0,
    "SmLs03": 13.5,
    "SiRstv": 12.8,
    "AtmWtAg": 9.9,
    "SmLs04": 10.2,
    "SmLs05": 10.0,
    "SmLs06": 9.9,
    "SmLs07": 4.2,
    "SmLs08": 3.9,
    "SmLs09": 3.9,
}
MANY_CALLS = 2000  # one test of the long tier makes them
# Values, standard deviation, and how near it must come, relative (the tolerances of the GNU Scientific Library).
DEVIATIONS = {
    "NumAcc1": ([10000001.0, 10000003.0, 10000002.0], 1.0, 1e-15),
    "NumAcc2": ([1.2] + [1.1, 1.3] * 500, 0.1, 1e-15),
    "NumAcc3": ([1000000.2] + [1000000.1, 1000000.3] * 500, 0.1, 1e-9),
    "NumAcc4": ([10000000.2] + [10000000.1, 10000000.3] * 500, 0.1, 1e-7),
}


def read(name: str) -> tuple[Tensor, Tensor, float]:
    """Return the responses, the treatments counted from 0, and the certified F statistic."""
    lines = (FOLDER / f"{name}.dat").read_text().splitlines()
    certified = next(float(line.split()[-1]) for line in lines if line.startswith("Between"))
    treatments, responses = zip(*(line.split() for line in lines[60:] if line.strip()), strict=True)
    x = torch.tensor([float(response) for response in responses], dtype=torch.float64)
    y = torch.tensor([int(treatment) for treatment in treatments])
    return x, y - y.min(), certified


def collect(x: Tensor, y: Tensor, num_classes: int, batch: int | None, parts: int) -> Moments:
    """Return moments from batches of a size, in parts that are merged; some parts may be empty."""
    total = Moments(1, num_classes)
    for rows, labels in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        size = batch or max(len(rows), 1)
        part = Moments(1, num_classes)
        for some, those in zip(rows.split(size), labels.split(size), strict=True):
            part.update(some[:, None], those)
        total.merge(part)
    return total


def f_statistic(moments: Moments) -> float:
    counts = moments.class_counts.double()
    groups, rows = len(counts), moments.count
    between = float((counts * moments.class_mean_differences[:, 0].square()).sum())
    within = rows * float(moments.variance) - between
    return (between / (groups - 1)) / (within / (rows - groups))


def correct_digits(value: float, certified: float) -> float:
    error = abs(value - certified) / abs(certified)
    return -math.log10(error) if error else 16.0


@pytest.mark.parametrize("name", DIGITS)
@pytest.mark.parametrize("most_calls", [MANY_CALLS, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_certified_analysis_of_variance(name: str, most_calls: float) -> None:
    x, y, certified = read(name)
    num_classes = int(y.max()) + 1
    for parts in PARTS:
        for batch in BATCHES:
            if len(x) / (batch or len(x)) > most_calls:
                continue
            digits = correct_digits(f_statistic(collect(x, y, num_classes, batch, parts)), certified)
            assert digits >= DIGITS[name], f"{digits:.2f} digits in batches of {batch or 'all'} and {parts} parts"


@pytest.mark.parametrize("name", DEVIATIONS)
def test_certified_deviations(name: str) -> None:
    values, certified, tolerance = DEVIATIONS[name]
    x = torch.tensor(values, dtype=torch.float64)
    y = torch.arange(len(x)) % 2
    for parts in PARTS:
        for batch in BATCHES:
            moments = collect(x, y, 2, batch, parts)
            deviation = math.sqrt(float(moments.variance) * len(x) / (len(x) - 1))
            assert deviation == pytest.approx(certified, rel=tolerance, abs=0), f"batches of {batch}, {parts} parts"
