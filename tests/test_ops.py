"""The operations, with and without the compiled kernels: the formula, autograd, layouts, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from cases import PRECISIONS, Precision
from torch import Tensor

from leace_fast import ops, reference
from leace_fast._extension import Extension

BUILT = ops.EXTENSION.present
needs_kernels = pytest.mark.skipif(not BUILT, reason=f"extension: {ops.EXTENSION.reason}")


@pytest.fixture(params=[pytest.param(True, marks=needs_kernels, id="kernels"), pytest.param(False, id="torch")])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the compiled kernels, and again as where they are absent."""
    if not request.param:
        monkeypatch.setattr(ops, "EXTENSION", Extension(False, "switched off by a test"))
    return "kernels" if request.param else "torch"


def factors(dim: int, rank: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(dim, rank, generator=generator, dtype=torch.float64)
    reader = torch.randn(rank, dim, generator=generator, dtype=torch.float64) + left.mT
    right = torch.linalg.solve(reader @ left, reader)  # oblique: left @ right is not symmetric
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    compute = reference.compute_dtype(dtype)
    return left.to(compute), right.to(compute), mean.to(compute)


def exact(x: Tensor, left: Tensor, right: Tensor, mean: Tensor | None) -> Tensor:
    """Return the formula in float64, written out in another order than the code has it."""
    x, left, right = x.double(), left.double(), right.double()
    centre = torch.zeros(x.shape[-1], dtype=torch.float64) if mean is None else mean.double()
    projection = torch.eye(x.shape[-1], dtype=torch.float64) - left @ right
    return (x - centre) @ projection.mT + centre


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (7, 2), (64, 0), (64, 1), (200, 9), (768, 4)])
@pytest.mark.parametrize("shape", [(), (1,), (33,), (2, 3, 5), (0,), (4, 0)], ids=str)
def test_follows_the_formula(backend: str, precision: Precision, dim: int, rank: int, shape: tuple[int, ...]) -> None:
    """Rounded once to the dtype of x; and at most 1.5 times as far off as plain torch, and a last place."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(*shape, dim, generator=generator, dtype=torch.float64) + 1).to(precision.dtype)
    left, right, mean = factors(dim, rank, precision.dtype)
    for centre in (mean, None):
        out, truth = ops.project(x, left, right, centre), exact(x, left, right, centre)
        assert out.dtype == x.dtype and out.shape == x.shape
        if not x.numel():
            continue
        error, plain = (out.double() - truth).abs(), reference.project(x, left, right, centre).double()
        last_place = torch.finfo(left.dtype).eps * truth.abs().max()
        assert error.max() <= 1.5 * (plain - truth).abs().max() + last_place
        size = x.double().abs() + mean.double().abs()
        size = size + size @ right.double().abs().mT @ left.double().abs().mT
        sums = torch.finfo(left.dtype).eps * (dim**0.5 + 8) * size
        assert (error <= torch.finfo(x.dtype).eps / 2 * truth.abs() + sums).all()


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_any_layout_will_do(backend: str, precision: Precision) -> None:
    x = torch.randn(6, 10, 8, generator=torch.Generator().manual_seed(2)).to(precision.dtype)
    left, right, mean = factors(8, 2, precision.dtype)
    expected = ops.project(x, left, right, mean)
    # Kernels give the same bits; BLAS may sum in another order.
    tolerance = 0 if backend == "kernels" else 2 * torch.finfo(precision.dtype).eps
    layouts = {
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every other": x.repeat_interleave(2, 0)[::2],
        "inside a wider one": torch.cat([x, x], -1)[..., :8],
        "columns first": x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }
    for name, rows in layouts.items():
        before = rows.clone()
        out = ops.project(rows, left, right, mean)
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=8 * tolerance, msg=name)
        assert torch.equal(rows, before), "x is not written to"
    out = ops.project(x, left.mT.contiguous().mT, right.mT.contiguous().mT, mean)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=8 * tolerance, msg="factors transposed")


def test_expanded_rows(backend: str) -> None:
    left, right, mean = factors(8, 2, torch.float32)
    row = torch.randn(8)
    torch.testing.assert_close(ops.project(row.expand(5, 8), left, right, mean)[3], ops.project(row, left, right, mean))


@pytest.mark.parametrize("centred", [True, False])
def test_gradients(backend: str, centred: bool) -> None:
    left, right, mean = factors(6, 2, torch.float64)
    centre = mean if centred else None
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: ops.project(rows, left, right, centre), (x,))
    # Not contiguous, and a gradient that is expanded.
    (ops.project(x.transpose(0, 1), left, right, centre)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (torch.ones(6).double() @ (torch.eye(6) - left @ right)).expand(3, 4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_have_the_dtype_of_x(backend: str, dtype: torch.dtype) -> None:
    left, right, mean = factors(6, 2, dtype)
    x = torch.randn(5, 6).to(dtype).requires_grad_()
    ops.project(x, left, right, mean).sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    expected = exact(torch.ones(1, 6), right.mT, left.mT, None).expand(5, 6)
    torch.testing.assert_close(x.grad.double(), expected, rtol=0.01, atol=0.01)


@needs_kernels
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_registration_is_complete(precision: Precision) -> None:
    left, right, mean = factors(8, 2, precision.dtype)
    operator = torch.ops.leace_fast.project.default
    rows = torch.randn(2, 8, 3).to(precision.dtype).transpose(1, 2)
    torch.library.opcheck(operator, (rows.clone().requires_grad_(), left, right, mean))
    torch.library.opcheck(operator, (rows[:0], left, right, None), test_utils=("test_schema", "test_faketensor"))


def test_runs_under_fake_tensors(backend: str) -> None:
    """Shapes come without data, as `torch.compile` and `torch.export` ask for them."""
    left, right, mean = factors(8, 2, torch.bfloat16)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = ops.project(mode.from_tensor(torch.randn(2, 3, 8).bfloat16()), left, right, mean)
    assert out.shape == (2, 3, 8) and out.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(3, 8).long()}, TypeError, "x has dtype torch.int64, expected a floating dtype"),
        ({"x": torch.ones(3, 7)}, ValueError, "x has shape (3, 7), expected (..., 8)"),
        ({"x": torch.tensor(1.0)}, ValueError, "x has shape (), expected (..., 8)"),
        ({"x": torch.ones(3, 8).double()}, TypeError, "dtype torch.float32, expected torch.float64"),
        ({"left": torch.ones(8, 3)}, ValueError, "left (8, 3) and right (2, 8), expected (d, k) and (k, d)"),
        ({"left": torch.ones(8)}, ValueError, "left (8,) and right (2, 8)"),
        ({"mean": torch.ones(7)}, ValueError, "mean has shape (7,), expected (8,)"),
        ({"mean": torch.ones(8).double()}, TypeError, "expected torch.float32 for x of torch.float32"),
    ],
)
def test_refuses_what_does_not_fit(
    backend: str, change: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    left, right, mean = factors(8, 2, torch.float32)
    arguments = {"x": torch.ones(3, 8), "left": left, "right": right, "mean": mean} | change
    with pytest.raises(error, match=re.escape(message)):
        ops.project(**arguments)
