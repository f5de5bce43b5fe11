"""The norms with an erasure behind them: against float64, their gradients, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import PRECISIONS, Precision
from hypothesis import given
from hypothesis import strategies as st
from operands import assert_as_good_as_torch, factors, needs_kernels, random_rows, size_of_sums, stacked
from torch import Tensor

from leace_fast._ops import operators as ops
from leace_fast._ops import reference


def rms(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *eraser: Any):
    return ops.add_rms_norm_project(x, residual, weight, 1e-6, *eraser, weight_offset=1.0)


def layer(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *eraser: Any):
    return ops.add_layer_norm_project(x, residual, weight, bias, 1e-6, *eraser)


def plain_rms(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *eraser: Any):
    return reference.add_rms_norm_project(x, residual, weight, 1e-6, *eraser, weight_offset=1.0)


def plain_layer(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *eraser: Any):
    return reference.add_layer_norm_project(x, residual, weight, bias, 1e-6, *eraser)


def exact(norm: Callable, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *eraser: Any):
    """Return the erased norm in float64, of the sum as it was rounded, by torch's own norms."""
    left, right = eraser[0].double(), eraser[1].double()
    mean = None if eraser[2] is None else eraser[2].double()
    rows = (x if residual is None else x + residual).double()
    if norm is rms:
        scale = None if weight is None else weight.double() + 1
        normed = torch.nn.functional.rms_norm(rows, rows.shape[-1:], scale, 1e-6)
    else:
        shift = None if bias is None else bias.double()
        scale = None if weight is None else weight.double()
        normed = torch.nn.functional.layer_norm(rows, rows.shape[-1:], scale, shift, 1e-6)
    centred = normed if mean is None else normed - mean
    return normed - centred @ right.mT @ left.mT


NORMS = [pytest.param(rms, plain_rms, id="rms"), pytest.param(layer, plain_layer, id="layer")]
SIZES = [(1, 0), (7, 2), (64, 0), (64, 1), (200, 9), (1536, 64)]


@pytest.mark.parametrize(("norm", "plain"), NORMS)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize(("dim", "rank"), SIZES)
@pytest.mark.parametrize("shape", [(), (2, 3, 5), (0,)], ids=str)
def test_follows_the_formula(
    backend: str, norm: Callable, plain: Callable, precision: Precision, dim: int, rank: int, shape: tuple[int, ...]
) -> None:
    dtype = precision.dtype
    x, residual = (random_rows(*shape, dim, dtype=dtype, seed=seed) for seed in (1, 2))
    weight, bias = random_rows(dim, dtype=dtype, seed=3), random_rows(dim, dtype=torch.float32, seed=4)
    left, right, mean = factors(dim, rank, dtype)
    for added, scale, shift, centre in ((residual, weight, bias, mean), (None, None, None, None)):
        arguments = (x, added, scale, shift, left, right, centre)
        y, summed = norm(*arguments)
        assert summed is x if added is None else torch.equal(summed, x + residual)
        assert_as_good_as_torch(y, plain(*arguments)[0], exact(norm, *arguments))


@given(data=st.data())
def test_any_sizes_and_layouts(data: st.DataObject) -> None:
    """Every operation, at most 1.5 times as far off as plain torch."""
    draw = data.draw
    dim, rank, rows = draw(st.integers(1, 300)), draw(st.integers(0, 70)), draw(st.integers(0, 40))
    dtype = draw(st.sampled_from([precision.dtype for precision in PRECISIONS]))
    erasers = draw(st.integers(1, 4))
    left, right, mean = stacked(erasers, dim, min(rank, dim // 2), dtype)
    step, begin = draw(st.sampled_from([1, 2])), draw(st.integers(0, 3))
    x, residual = (random_rows(rows, begin + dim * step, dtype=dtype, seed=s)[:, begin::step] for s in (5, 6))
    index = torch.randint(-1, erasers, (rows,), generator=torch.Generator().manual_seed(7))
    weight = random_rows(dim, dtype=dtype)
    eraser: tuple[Any, ...] = (left, right, mean, index)
    if draw(st.booleans()):
        eraser = (left[0], right[0], mean[0])
    out, plain = ops.project(x, *eraser), reference.project(x, *eraser)
    doubles = tuple(part if part.dtype == torch.int64 else part.double() for part in eraser)
    largest = [left.abs().amax(0), right.abs().amax(0), mean.abs().amax(0)]
    assert_as_good_as_torch(out, plain, reference.project(x.double(), *doubles), size_of_sums(x, *largest))
    for norm, slow in ((rms, plain_rms), (layer, plain_layer)):
        y, _ = norm(x, residual, weight, weight, *eraser)
        summed = (x + residual).double()
        truth, _ = slow(summed, None, weight.double(), weight.double(), *doubles)
        normed, _ = slow(summed, None, weight.double(), weight.double(), left[0, :, :0], right[0, :0])
        size = size_of_sums(normed.abs() + 1, *largest)
        assert_as_good_as_torch(y, slow(x, residual, weight, weight, *eraser)[0], truth, size)


@pytest.mark.parametrize(("norm", "plain"), NORMS)
def test_rows_far_from_zero(backend: str, norm: Callable, plain: Callable) -> None:
    x = random_rows(5, 512, dtype=torch.float32, offset=1e3)
    left, right, mean = factors(512, 3, torch.float32)
    arguments = (x, None, None, None, left, right, mean)
    assert_as_good_as_torch(norm(*arguments)[0], plain(*arguments)[0], exact(norm, *arguments))


@pytest.mark.parametrize(("norm", "plain"), NORMS)
def test_each_row_meets_its_own_eraser(backend: str, norm: Callable, plain: Callable) -> None:
    left, right, mean = stacked(3, 40, 5, torch.bfloat16)
    x, residual = (random_rows(4, 7, 40, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    index = torch.randint(-1, 3, (4, 7), generator=torch.Generator().manual_seed(0))
    weight = random_rows(40, dtype=torch.bfloat16)
    y, summed = norm(x, residual, weight, None, left, right, mean, index)
    assert torch.equal(summed, x + residual)
    for number in range(-1, 3):
        eraser = (left[number], right[number], mean[number])
        if number < 0:
            eraser = (left[0][:, :0], right[0][:0], None)  # of rank 0: normed all the same
        one, _ = norm(x, residual, weight, None, *eraser)
        tolerance = 0 if backend == "kernels" else 2**-7
        chosen = index == number
        torch.testing.assert_close(y[chosen], one[chosen], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("norm", "plain"), NORMS)
@pytest.mark.parametrize("added", [True, False])
def test_gradients(backend: str, norm: Callable, plain: Callable, added: bool) -> None:
    left, right, mean = stacked(2, 6, 2, torch.float64)
    index = torch.tensor([1, -1, 0])
    x, residual, weight, bias = (torch.randn(*shape, 6).double().requires_grad_() for shape in ((3,), (3,), (), ()))

    def both(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        y, summed = norm(x, residual if added else None, weight, bias, left, right, mean, index)
        return y, summed * 1

    assert torch.autograd.gradcheck(both, (x, residual, weight, bias))


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_registration_is_complete(dtype: torch.dtype) -> None:
    left, right, mean = stacked(2, 8, 2, dtype)
    index = torch.tensor([[0, 1, -1], [1, 1, 0]])
    x, residual = (random_rows(2, 3, 8, dtype=dtype, seed=s).requires_grad_() for s in (1, 2))
    weight, bias = (random_rows(8, dtype=dtype, seed=s).requires_grad_() for s in (3, 4))
    operators = torch.ops.leace_fast
    for added in (residual, None):
        torch.library.opcheck(
            operators.add_rms_norm_project.default, (x, added, weight, 1e-6, left, right, mean, index, 1.0)
        )
        torch.library.opcheck(
            operators.add_layer_norm_project.default, (x, added, weight, bias, 1e-6, left[0], right[0], mean[0])
        )


@needs_kernels
@pytest.mark.parametrize(("norm", "plain"), NORMS)
def test_compiles_without_a_graph_break(norm: Callable, plain: Callable) -> None:
    left, right, mean = factors(8, 2, torch.float32)
    x, residual, weight = (random_rows(5, 8, dtype=torch.float32, seed=s).requires_grad_() for s in (1, 2, 3))

    def model(x: Tensor, residual: Tensor) -> Tensor:
        y, summed = norm(x, residual, weight[0], None, left, right, mean)
        return y * summed

    out = torch.compile(model, fullgraph=True, backend="aot_eager")(x, residual)
    torch.testing.assert_close(out, model(x, residual))
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), (x, residual, weight)),
        torch.autograd.grad(model(x, residual).sum(), (x, residual, weight)),
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"residual": torch.ones(2, 8)}, ValueError, "residual has shape (2, 8), expected (3, 8)"),
        ({"residual": torch.ones(3, 8).half()}, TypeError, "residual has dtype torch.float16, expected torch.float32"),
        ({"weight": torch.ones(7)}, ValueError, "weight has shape (7,), expected (8,)"),
        ({"weight": torch.ones(8).int()}, TypeError, "weight has dtype torch.int32, expected a floating dtype"),
        ({"bias": torch.ones(9)}, ValueError, "bias has shape (9,), expected (8,)"),
        ({"x": torch.ones(3, 8).long(), "residual": None}, TypeError, "x has dtype torch.int64"),
        ({"x": torch.ones(3, 7), "residual": None, "weight": None, "bias": None}, ValueError, "x has shape (3, 7)"),
    ],
)
def test_refuses_what_does_not_fit(
    backend: str, change: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    left, right, mean = factors(8, 2, torch.float32)
    arguments: dict[str, Any] = {
        "x": torch.ones(3, 8),
        "residual": torch.ones(3, 8),
        "weight": torch.ones(8),
        "bias": torch.ones(8),
    }
    arguments |= change
    with pytest.raises(error, match=re.escape(message)):
        ops.add_layer_norm_project(**arguments, eps=1e-6, left=left, right=right, mean=mean)
    if "bias" not in change:
        del arguments["bias"]
        with pytest.raises(error, match=re.escape(message)):
            ops.add_rms_norm_project(**arguments, eps=1e-6, left=left, right=right, mean=mean)
