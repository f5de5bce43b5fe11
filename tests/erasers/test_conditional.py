"""`ConditionalEraser` and `TargetEraser`: what they do to rows, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from leace_fast import ConditionalEraser, Eraser, TargetEraser
from leace_fast.erasers import Report

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def parts(*labels: int, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((*labels, dim), (*labels, dim), (*labels, dim, dim))
    source, goal, maps = (torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes)
    return source, goal, maps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
def test_maps_each_row_by_its_class(dtype: torch.dtype, affine: bool) -> None:
    source, goal, maps = parts(3)
    eraser = ConditionalEraser(source, goal, maps if affine else None)
    x, y = torch.randn(2, 5, 4).to(dtype), torch.tensor([[0, 1, 2, -100, 1], [2, 2, 0, 0, -100]])
    out = eraser(x, y)
    for i in range(2):
        for j in range(5):
            row, label = x[i, j], int(y[i, j])
            if label == -100:
                assert torch.equal(out[i, j], row)
                continue
            wide = row.double() - source[label]
            expected = ((maps[label] @ wide if affine else wide) + goal[label]).to(dtype)
            torch.testing.assert_close(out[i, j], expected, rtol=2e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-5)
    assert out.dtype == dtype and out.shape == x.shape
    assert eraser(x[:0], y[:0]).shape == (0, 5, 4)


def test_two_labels_choose_the_map() -> None:
    source, goal, maps = parts(3, 3)
    eraser = ConditionalEraser(source, goal, maps)
    x, y, to = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, -100, 1]), torch.arange(6) % 3
    out = eraser(x, y, to)
    for i in (0, 1, 2, 3, 5):
        expected = maps[y[i], to[i]] @ (x[i] - source[y[i], to[i]]) + goal[y[i], to[i]]
        torch.testing.assert_close(out[i], expected)
    assert torch.equal(eraser(x, y, 2), eraser(x, y, torch.full((6,), 2)))


@pytest.mark.parametrize("affine", [True, False])
def test_files_are_exact(tmp_path: Path, affine: bool) -> None:
    source, goal, maps = parts(3)
    report = Report("oracle", 4, 2, 10, 0.5, not_erased=("class 2: it has no rows",))
    eraser = ConditionalEraser(source, goal, maps if affine else None, method="oracle", report=report)
    eraser.save(tmp_path / "e.safetensors")
    loaded = ConditionalEraser.load(tmp_path / "e.safetensors")
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    assert torch.equal(loaded(x, y), eraser(x, y)) and loaded.report == report and repr(loaded) == repr(eraser)
    with pytest.raises(ValueError, match="holds 'conditional_eraser', expected 'eraser'"):
        Eraser.load(tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="holds 'conditional_eraser', expected 'target_eraser'"):
        TargetEraser.load(tmp_path / "e.safetensors")


def test_is_frozen_and_shares_nothing() -> None:
    source, goal, maps = parts(2)
    eraser = ConditionalEraser(source, goal, maps)
    before = eraser(torch.ones(2, 4), torch.arange(2))
    source.zero_()
    eraser.goal.zero_()
    assert torch.equal(eraser(torch.ones(2, 4), torch.arange(2)), before)
    with pytest.raises(AttributeError, match="an eraser is frozen: cannot set 'method'"):
        eraser.method = "x"
    with pytest.raises(AttributeError, match="frozen"):
        TargetEraser(torch.ones(2, 1), torch.ones(1)).method = "x"


def test_refusals_of_conditional() -> None:
    source, goal, maps = parts(3)
    eraser = ConditionalEraser(source, goal, maps)
    x, y = torch.ones(2, 4), torch.arange(2)
    for given, error, message in [
        ((x, y.float()), TypeError, "labels have dtype torch.float32, expected integers"),
        ((x.long(), y), TypeError, "x has dtype torch.int64, expected a floating one"),
        ((x[:, :3], y), ValueError, r"x has shape \(2, 3\), expected \(..., 4\)"),
        ((x, y[:1]), ValueError, r"labels have shape \(1,\), expected \(2,\): one for each row"),
        ((x, torch.tensor([0, 3])), ValueError, "a label is 3, expected 0 to 2, or -100"),
        ((x, torch.tensor([0, -1])), ValueError, "a label is -1, expected 0 to 2"),
        ((x, y, y), ValueError, "got 2 labels a row, expected 1"),
        ((x,), ValueError, "got 0 labels a row, expected 1"),
    ]:
        with pytest.raises(error, match=message):
            eraser(*given)
    with pytest.raises(ValueError, match="expected \\(k, d\\) twice"):
        ConditionalEraser(source, goal[:2])
    with pytest.raises(ValueError, match="maps have shape"):
        ConditionalEraser(source, goal, maps[:, :3])
    with pytest.raises(ValueError, match="NaN or Inf"):
        ConditionalEraser(source * torch.nan, goal)


def test_target_eraser(tmp_path: Path) -> None:
    coefficients, mean = torch.randn(4, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    eraser = TargetEraser(coefficients, mean, method="oracle", report=Report("oracle", 4, 2, 10, 0.5))
    x, z = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 2)
    torch.testing.assert_close(eraser(x, z), x - (z.double() - mean) @ coefficients.mT)
    assert eraser(x.bfloat16(), z).dtype == torch.bfloat16 and eraser.dim == 4
    eraser.save(tmp_path / "e.safetensors")
    loaded = TargetEraser.load(tmp_path / "e.safetensors")
    assert torch.equal(loaded(x, z), eraser(x, z)) and loaded.report == eraser.report
    assert torch.equal(loaded.coefficients, coefficients) and torch.equal(loaded.mean, mean)
    with pytest.raises(ValueError, match=r"z \(3, 5, 1\), expected \(..., 4\) and \(..., 2\)"):
        eraser(x, z[..., :1])
    with pytest.raises(TypeError, match="expected a floating one"):
        eraser(x.long(), z)
    with pytest.raises(ValueError, match=r"expected \(d, t\)"):
        TargetEraser(coefficients, mean[:1])
    with pytest.raises(ValueError, match="NaN or Inf"):
        TargetEraser(coefficients, mean * torch.inf)
