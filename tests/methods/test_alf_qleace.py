"""Label-free quadratic LEACE: means coincide exactly, class covariances nearly."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from laws import within

from leace_fast import METHODS, Moments, leace
from leace_fast.methods import alf_qleace


def unlike(num_classes: int = 3) -> cases.Data:
    """Return classes that differ in mean and in the variance along a few directions."""
    data = cases.classes(6000, 12, num_classes, condition=10.0)
    generator = torch.Generator().manual_seed(1)
    extra = torch.randn(6000, 1, generator=generator, dtype=torch.float64)
    axes = torch.randn(num_classes, 12, generator=generator, dtype=torch.float64)
    return cases.Data(data.x + 2 * extra * axes[data.y], data.y, data.options)


def farthest(x: torch.Tensor, data: cases.Data) -> float:
    """Return the largest Frobenius distance of a class covariance from the mean of all."""
    moments = data.moments(x, per_class=True)
    shares = moments.class_weights / moments.total_weight
    covariances = moments.class_covariances
    return float((covariances - torch.einsum("k,kij->ij", shares, covariances)).norm(dim=(1, 2)).max())


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_reaches_its_share(share: float) -> None:
    data = unlike()
    moments = data.moments(per_class=True)
    eraser, plain = alf_qleace(moments, share=share), leace(moments)
    before, after = farthest(plain(data.x), data), farthest(eraser(data.x), data)
    assert after <= (1 - share) * before + 1e-12
    assert eraser.rank > plain.rank and eraser.report is not None
    within(data.moments(eraser(data.x)).class_mean_differences, 1e-12, "class means")
    left = float(eraser.report.not_erased[-1].split()[2])
    assert left == pytest.approx(after / before, abs=0.01), "the report says what is left"
    if share < 1:
        smaller = alf_qleace(moments, share=share, max_rank=eraser.rank - plain.rank - 1)
        assert farthest(smaller(data.x), data) > (1 - share) * before, "it drops no more than it must"
        assert eraser.rank < 12


def test_drops_the_direction_that_differs() -> None:
    """Two classes of one mean whose variances differ in one column: that is what is dropped."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8000, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(8000) % 2
    x[:, 4] *= 1 + 3 * y
    x[:, 1] += 4 * y
    eraser = alf_qleace(Moments(6, 2, per_class=True).update(x, y))
    out = eraser(x)
    assert eraser.rank == 2 and out[:, 4].var() < 0.01 < 0.5 < out[:, 0].var()


def test_of_equal_covariances_it_is_leace() -> None:
    half = torch.randn(400, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = torch.cat([half, half + 1]), torch.arange(800) // 400
    moments = Moments(5, 2, per_class=True).update(x, y)
    eraser, plain = alf_qleace(moments, share=0.0), leace(moments)
    within(eraser.left @ eraser.right - plain.left @ plain.right, 1e-12, "eraser")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="make the moments with per_class=True"):
        alf_qleace(unlike().moments())
    options: list[dict[str, Any]] = [{"share": 1.1}, {"share": float("nan")}, {"max_rank": 0}]
    for bad in options:
        with pytest.raises(ValueError, match="expected a"):
            alf_qleace(unlike().moments(per_class=True), **bad)
    assert METHODS["alf_qleace"].needs
