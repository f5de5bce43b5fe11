"""Rows that the kernels leave out: not finite, ignored, or none that could be used, which the next read tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from check_moments import ROWS, labelled
from laws import within
from torch import Tensor

from leace_fast import Moments, leace
from leace_fast.statistics import _kernels
from leace_fast.triton_kernels import configs


@pytest.fixture(autouse=True, scope="module")
def kernels_on_the_cpu() -> Iterator[None]:
    with patch.object(_kernels, "DEVICES", ["cpu"]), patch.object(configs, "block_rows", lambda dim: ROWS):
        yield


def check_rows_that_are_not_finite_are_left_out_and_counted() -> None:
    x, y = labelled(600, 5, torch.bfloat16)
    x[3, 1], x[300, 0], x[301, 4], x[500] = torch.nan, torch.inf, -torch.inf, torch.nan
    y[500] = -100  # not looked at
    moments = Moments(5, 3).update(x, y)
    assert moments.skipped == 3 and moments.count == 596
    clean = x.isfinite().all(1)
    expected = Moments(5, 3).update(x[clean], y[clean])
    within(moments.covariance - expected.covariance, 1e-3, "covariance")
    within(moments.class_mean_differences - expected.class_mean_differences, 1e-14, "class means")
    with pytest.raises(ValueError, match="3 rows held NaN or Inf and were left out, 596 rows were used"):
        leace(moments)
    moments.nonfinite = "skip"
    assert leace(moments).rank == 2


def check_targets_that_are_not_finite_are_left_out_and_counted() -> None:
    x, z = torch.randn(300, 4), torch.randn(300, 2)
    z[7, 1], x[9, 0] = torch.inf, torch.nan
    moments = Moments(4, target_dim=2).update(x, z)
    assert (moments.skipped, moments.count) == (2, 298)
    assert moments.cross_covariance.isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y": torch.tensor([0, 1, 3, -1])}, "2 had a label out of range, expected 0 to 2, or -100"),
        ({"mask": torch.tensor([0, 1, 2, 1])}, "1 had a mask other than 0 and 1, use weight="),
        ({"weight": torch.tensor([0, 1.0, -1.0, torch.nan])}, "2 had a weight that is not 0 nor 1e-30 to 1e30"),
    ],
)
def check_what_the_device_sees_is_raised_by_the_next_read(change: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    good = {"x": torch.randn(4, 6), "y": torch.tensor([0, 1, 2, 0])}
    moments = Moments(6, 3).update(**(good | change))
    for read in (
        lambda: moments.count,
        lambda: leace(moments),
        lambda: moments.save(tmp_path / "m"),
        lambda: Moments(6, 3).merge(moments),
    ):
        with pytest.raises(ValueError) as caught:
            read()
        assert said in str(caught.value)
    assert not (tmp_path / "m").exists()


def check_labels_of_rows_that_are_left_out_may_be_anything() -> None:
    x, y = torch.randn(6, 3), torch.tensor([0, 99, 1, 1, -5, 0])
    mask, weight = torch.tensor([1, 0, 1, 1, 1, 1]), torch.tensor([1.0, 1, 1, 1, 0, 1])
    assert Moments(3, 2).update(x, y, mask=mask, weight=weight).count == 4


def check_an_update_that_is_cut_off_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are launched one after the other: half of them leave sums that are of no use, and that is said."""
    from leace_fast.triton_kernels.block import BlockKernels

    x, y = torch.randn(3 * ROWS, 5), torch.arange(3 * ROWS) % 2
    moments = Moments(5, 2).update(x, y)
    kept = moments.copy()

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BlockKernels, "locate", cut_off)
        with pytest.raises(KeyboardInterrupt):
            moments.update(x, y)
    for read in (
        lambda: moments.count,
        lambda: moments.copy(),
        lambda: moments.update(x, y),
        lambda: kept.copy().merge(moments),
    ):
        with pytest.raises(ValueError, match="was interrupted, and part of the rows are in the sums: begin anew"):
            read()
    assert kept.update(x, y).count == 6 * ROWS
