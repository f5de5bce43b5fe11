"""`Eraser.rescaled`: the same map in the units of rows before a norm's weight and bias."""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch

from leace_fast import Eraser, leace

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.rand(6, generator=GENERATOR, dtype=torch.float64) + 0.2
BIAS = torch.randn(6, generator=GENERATOR, dtype=torch.float64)


def fitted(affine: bool = True) -> Eraser:
    return leace(cases.classes(300, 6, 3).moments(), shrinkage=False, affine=affine).with_site("norm")


@pytest.mark.parametrize("bias", [None, BIAS, torch.zeros(6)])
@pytest.mark.parametrize("affine", [True, False])
def test_it_does_the_same(affine: bool, bias: Any) -> None:
    eraser, rows = fitted(affine), torch.randn(9, 6, generator=GENERATOR, dtype=torch.float64)
    for weight in (WEIGHT, -WEIGHT, WEIGHT.float()):
        other = eraser.rescaled(weight, bias)
        shift = 0.0 if bias is None else bias
        torch.testing.assert_close(
            weight.double() * other(rows) + shift, eraser(weight.double() * rows + shift), rtol=1e-10, atol=1e-10
        )
        assert (other.site, other.method, other.rank, other.dtype) == ("norm", "leace", eraser.rank, eraser.dtype)
        assert (other.mean is None) == (not affine and (bias is None or not bias.any())) and other.report is None


def test_the_linear_map_is_that_of_the_scaled_rows() -> None:
    """`mean_solve` is scaled along: the same as fitting on the scaled rows."""
    case = cases.classes(300, 6, 3)
    moments = case.moments()
    scaled = Eraser(*(getattr(leace(moments, shrinkage=False), part) for part in ("left", "right", "mean")))
    assert scaled.mean_solve is None and scaled.rescaled(WEIGHT).mean_solve is None
    eraser = leace(moments, shrinkage=False).rescaled(WEIGHT)
    from leace_fast import Moments

    again = leace(Moments(6, moments.num_classes).update(case.x / WEIGHT.to(case.x), case.y), shrinkage=False)
    torch.testing.assert_close(eraser.mean_solve, again.mean_solve, rtol=1e-5, atol=1e-6)
    rows = torch.randn(9, 6, dtype=torch.float64)
    torch.testing.assert_close(
        eraser.without_offset(99)(rows), again.without_offset(99)(rows), rtol=1e-4, atol=1e-5, check_dtype=False
    )
    assert eraser.rescaled(1 / WEIGHT, BIAS).mean_solve is None


def test_arrays_and_back_again() -> None:
    eraser = fitted()
    there = eraser.rescaled(WEIGHT.numpy(), BIAS.numpy())
    back = there.rescaled(1 / WEIGHT, -BIAS / WEIGHT)
    for part in ("left", "right", "mean"):
        torch.testing.assert_close(getattr(back, part), getattr(eraser, part), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.ones(5), None, r"weight has shape \(5,\), expected \(6,\)"),
        (torch.ones(6), torch.ones(1), r"bias has shape \(1,\), expected \(6,\)"),
        (torch.tensor([1.0, 0, 1, 0, 1, 1]), None, "weight is zero in 2 places"),
        (torch.tensor([1.0, torch.nan, 1, 1, 1, 1]), None, "weight holds NaN or Inf"),
        (torch.ones(6), torch.full((6,), torch.inf), "bias holds NaN or Inf"),
    ],
)
def test_refused(weight: Any, bias: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted().rescaled(weight, bias)
