"""`leace(moments, metric=other)`: the means of the one, least change on the rows of the other."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from leace_fast import Moments, leace

DIM = 12


def labelled(offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3000) % 3
    x = torch.randn(3000, DIM, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, DIM)
    return x + 2 * torch.eye(3, DIM, dtype=torch.float64)[y] + offset, y


def ordinary() -> Tensor:
    """Rows of another covariance and another mean."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
    return torch.randn(5000, DIM, generator=generator, dtype=torch.float64) @ root + 4


def change(left: Tensor, right: Tensor, mean: Tensor, x: Tensor) -> Tensor:
    """Return the mean squared change of rows by `x - L R (x - mean)`."""
    return ((x - mean) @ right.mT @ left.mT).square().sum(1).mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_class_means_are_equal_and_change_is_least_on_the_other_rows(dtype: torch.dtype) -> None:
    x, y = labelled()
    x, others = x.to(dtype), ordinary().to(dtype)
    moments, metric = Moments(DIM, 3).update(x, y), Moments(DIM).update(others)
    eraser = leace(moments, metric=metric, shrinkage=False)
    assert Moments(DIM, 3).update(eraser(x.double()), y).class_mean_differences.abs().max() < 1e-12
    assert eraser.mean is not None and torch.allclose(eraser.mean.double(), others.double().mean(0), atol=1e-6)

    # No affine map that makes these means equal changes the other rows less: the gradient over all of them is zero.
    left, right, mean = (part.double().clone() for part in (eraser.left, eraser.right, eraser.mean))
    erased, rows = left @ right, others.double()
    covariance = (rows - rows.mean(0)).mT @ (rows - rows.mean(0)) / len(rows)
    columns = (moments.class_means - moments.class_means[0])[1:].mT
    free = torch.eye(DIM, dtype=torch.float64) - columns @ torch.linalg.pinv(columns)
    gradient = erased @ covariance @ free  # of the mean squared change, along the maps that erase all the same
    precise = 1e-10 if dtype == torch.float64 else 5e-3  # the ridge of plain torch is ten times that of the kernels
    assert gradient.abs().max() < precise * covariance.abs().max()
    found = change(left, right, mean, rows)
    own = leace(moments, shrinkage=False)
    assert own.mean is not None
    assert found < change(own.left.double(), own.right.double(), own.mean.double(), rows)
    for shift in (0.1, -0.1):
        assert found < change(left, right, mean + shift * right[0], rows), "about the mean of the other rows"
    assert eraser.report is not None and eraser.report.change == pytest.approx(float(found), rel=1e-3)
    assert eraser.report.rows == len(x)


def test_of_the_same_rows_it_is_the_same_eraser() -> None:
    x, y = labelled()
    moments = Moments(DIM, 3).update(x, y)
    one, two = leace(moments), leace(moments, metric=moments.pooled())
    assert torch.equal(one.left, two.left) and torch.equal(one.right, two.right)


@pytest.mark.parametrize("affine", [True, False])
def test_columns_that_are_constant_in_the_metric_are_erased_too(affine: bool) -> None:
    x, y = labelled()
    others = ordinary()
    others[:, 0], others[:, -1] = 3.0, 0.0
    moments = Moments(DIM, 3).update(x, y)
    eraser = leace(moments, metric=Moments(DIM).update(others), affine=affine, max_cost_ratio=float("inf"))
    assert Moments(DIM, 3).update(eraser(x), y).class_mean_differences.abs().max() < 1e-12


def test_several_concepts_and_real_valued_targets() -> None:
    x, y = labelled()
    metric = Moments(DIM).update(ordinary())
    both = [Moments(DIM, 3).update(x, y), Moments(DIM, target_dim=1).update(x, x[:, 5:6])]
    eraser = leace(both, metric=metric)
    assert eraser.rank == 3
    assert Moments(DIM, target_dim=1).update(eraser(x), x[:, 5:6]).cross_covariance.abs().max() < 1e-12


def test_a_metric_of_few_dimensions_warns() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9000, 256, generator=generator), torch.arange(9000) % 2
    narrow = torch.randn(9000, 3, generator=generator) @ torch.randn(3, 256, generator=generator)
    narrow += 0.01 * torch.randn(9000, 256, generator=generator)
    with pytest.warns(UserWarning, match=r"fill [23]\.\d of 256 dimensions"):
        leace(Moments(256, 2).update(x, y), metric=Moments(256).update(narrow))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leace(Moments(256, 2).update(narrow + x, y), metric=Moments(256).update(x))


def test_what_is_no_metric() -> None:
    x, y = labelled()
    moments = Moments(DIM, 3).update(x, y)
    with pytest.raises(TypeError, match="expected Moments"):
        leace(moments, metric=x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the metric has dim 5, expected 12"):
        leace(moments, metric=Moments(5).update(x[:, :5]))
    with pytest.raises(ValueError, match="the metric holds no rows"):
        leace(moments, metric=Moments(DIM))
    broken = Moments(DIM).update(torch.full((3, DIM), float("nan")))
    with pytest.raises(ValueError, match="rows held NaN or Inf"):
        leace(moments, metric=broken)


def test_a_metric_of_few_rows_warns() -> None:
    x, y = labelled()
    with pytest.warns(UserWarning, match="the metric is of 40 rows, few for 12 columns: .* 48 or more would do"):
        leace(Moments(DIM, 3).update(x, y), metric=Moments(DIM).update(ordinary()[:40]))
