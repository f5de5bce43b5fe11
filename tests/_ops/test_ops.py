"""The operations, with and without the compiled kernels: the formula, autograd, layouts, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from cases import PRECISIONS, Precision
from operands import assert_as_good_as_torch, exact, factors, needs_kernels, random_rows, stacked
from torch import Tensor

from leace_fast._ops import operators as ops
from leace_fast._ops import reference


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
        assert_as_good_as_torch(out, reference.project(x, left, right, centre), truth)
        error = (out.double() - truth).abs()
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
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_registration_is_complete(precision: Precision) -> None:
    left, right, mean = factors(8, 2, precision.dtype)
    operator = torch.ops.leace_fast.project.default
    rows = torch.randn(2, 8, 3).to(precision.dtype).transpose(1, 2)
    torch.library.opcheck(operator, (rows.clone().requires_grad_(), left, right, mean))
    torch.library.opcheck(operator, (rows[:0], left, right, None), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(torch.ops.leace_fast.project_.default, (rows.clone(), left, right, mean))


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


@needs_kernels
def test_compiles_without_a_graph_break() -> None:
    left, right, mean = factors(8, 2, torch.float32)
    rows = random_rows(5, 8, dtype=torch.float32)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def model(x: Tensor) -> Tensor:
        return ops.project(x * 2, left, right, mean) + ops.project_(x + 1, left, right)

    x = rows.clone().requires_grad_()
    out = model(x)
    expected = ops.project(rows * 2, left, right, mean) + ops.project(rows + 1, left, right)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, exact(torch.full((5, 8), 3.0), right.mT, left.mT, None).float())


# ------------------------------------------------------------------ in place


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_in_place_is_the_same_to_the_bit(backend: str, precision: Precision) -> None:
    left, right, mean = factors(24, 3, precision.dtype)
    wide = random_rows(4, 6, 48, dtype=precision.dtype)
    # Dense; rows apart; rows of several dimensions at no one distance; numbers apart.
    for rows in (wide[..., :24].contiguous(), wide[..., :24], wide[:, ::2, 24:], wide[..., ::2]):
        whole = rows.clone()
        expected = ops.project(whole, left, right, mean)
        before = wide.clone()
        assert ops.project_(rows, left, right, mean) is rows
        assert torch.equal(rows, expected)
        rows.copy_(whole)
        assert torch.equal(wide, before), "nothing outside the rows has changed"


def test_in_place_and_gradients(backend: str) -> None:
    left, right, mean = factors(6, 2, torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: ops.project_(rows * 1, left, right, mean), (x,))
    with pytest.raises(ValueError, match="leaf that requires a gradient"):
        ops.project_(x, left, right, mean)
    with torch.no_grad():
        kept = x.exp()
    saved = (x.detach().requires_grad_() * kept).sum()  # keeps `kept` for the way back
    ops.project_(kept, left, right, mean)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_in_place_refuses_rows_that_share_memory(backend: str) -> None:
    left, right, mean = factors(8, 2, torch.float32)
    with pytest.raises(ValueError, match="share memory"):
        ops.project_(torch.ones(8).expand(3, 8), left, right, mean)


# ------------------------------------------------------------------ an eraser for each row


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_each_row_meets_its_own_eraser(backend: str, precision: Precision) -> None:
    left, right, mean = stacked(3, 40, 5, precision.dtype)
    x = random_rows(4, 7, 40, dtype=precision.dtype)
    index = torch.randint(-1, 3, (4, 7), generator=torch.Generator().manual_seed(0))
    for centre in (mean, None):
        out = ops.project(x, left, right, centre, index)
        assert torch.equal(out[index == -1], x[index == -1]), "rows without an eraser, bitwise"
        for number in range(3):
            one = ops.project(x, left[number], right[number], None if centre is None else centre[number])
            tolerance = 0 if backend == "kernels" else 2 * torch.finfo(precision.dtype).eps
            chosen = index == number
            torch.testing.assert_close(out[chosen], one[chosen], rtol=tolerance, atol=8 * tolerance)
        assert torch.equal(ops.project_(x.clone(), left, right, centre, index), out)


def test_rows_without_an_eraser_keep_their_bits(backend: str) -> None:
    left, right, mean = stacked(2, 4, 1, torch.float32)
    x = torch.tensor([[-0.0, float("nan"), float("inf"), 1e-45], [1.0, 2.0, 3.0, 4.0]])
    out = ops.project(x, left, right, mean, torch.tensor([-1, 1]))
    assert torch.equal(out[0].view(torch.int32), x[0].view(torch.int32))
    assert out[1].isfinite().all()


@pytest.mark.parametrize("numbers", [[0, 1, 3], [0, -2, 1], [0, 2**40, 0], [-(2**40), 0, 0]])
def test_an_unknown_eraser_raises_before_anything_is_written(backend: str, numbers: list[int]) -> None:
    left, right, mean = stacked(3, 8, 2, torch.float32)
    x = random_rows(3, 8, dtype=torch.float32)
    kept, index = x.clone(), torch.tensor(numbers)
    for call in (ops.project, ops.project_):
        with pytest.raises(IndexError, match="one of 3 erasers"):
            call(x, left, right, mean, index)
    with pytest.raises(IndexError):
        ops.add_rms_norm_project(x, None, torch.ones(8), 1e-6, left, right, mean, index)
    assert torch.equal(x, kept)


def test_the_reference_fails_closed_where_it_cannot_raise() -> None:
    left, right, mean = stacked(2, 8, 2, torch.float32)
    out = reference.project(torch.ones(3, 8), left, right, mean, torch.tensor([2, -1, -5]))
    assert out[0].isnan().all() and out[2].isnan().all() and torch.equal(out[1], torch.ones(8))


def test_index_of_no_rows_and_of_one_row(backend: str) -> None:
    left, right, mean = stacked(2, 8, 2, torch.float32)
    assert ops.project(torch.ones(0, 8), left, right, mean, torch.ones(0, dtype=torch.int64)).shape == (0, 8)
    row = random_rows(8, dtype=torch.float32)
    one = ops.project(row, left, right, mean, torch.tensor(1))
    torch.testing.assert_close(one, ops.project(row, left[1], right[1], mean[1]))


def test_gradients_follow_the_index(backend: str) -> None:
    left, right, mean = stacked(2, 6, 2, torch.float64)
    index = torch.tensor([1, -1, 0])
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: ops.project(rows, left, right, mean, index), (x,))


@needs_kernels
@pytest.mark.slow
def test_registration_with_an_index_is_complete() -> None:
    left, right, mean = stacked(3, 8, 2, torch.float32)
    arguments = (torch.randn(2, 5, 8), left, right, mean, torch.randint(-1, 3, (2, 5)))
    torch.library.opcheck(torch.ops.leace_fast.project.default, (arguments[0].requires_grad_(), *arguments[1:]))
    torch.library.opcheck(torch.ops.leace_fast.project_.default, (torch.randn(2, 5, 8), *arguments[1:]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": torch.zeros(2, dtype=torch.int64)}, ValueError, "index has shape (2,), expected (3,)"),
        ({"index": torch.zeros(3, dtype=torch.int32)}, TypeError, "index has dtype torch.int32, expected torch.int64"),
        ({"left": torch.ones(8, 2)}, ValueError, "expected (E, d, k) and (E, k, d)"),
        ({"right": torch.ones(3, 2, 8)}, ValueError, "expected (E, d, k) and (E, k, d)"),
        ({"mean": torch.ones(8)}, ValueError, "mean has shape (8,), expected (2, 8)"),
    ],
)
def test_refuses_stacks_that_do_not_fit(
    backend: str, change: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    left, right, mean = stacked(2, 8, 2, torch.float32)
    index = torch.zeros(3, dtype=torch.int64)
    arguments = {"x": torch.ones(3, 8), "left": left, "right": right, "mean": mean, "index": index} | change
    for call in (ops.project, ops.project_):
        with pytest.raises(error, match=re.escape(message)):
            call(**arguments)
