"""The kernels on arrays of NumPy and of the DLPack protocol, without torch's operators."""

from __future__ import annotations

import re
from typing import Any

import numpy
import pytest
import torch
from operands import factors, random_rows, stacked

from leace_fast._ops import operators as ops

C: Any = ops.EXTENSION.module
pytestmark = pytest.mark.skipif(C is None, reason=f"extension: {ops.EXTENSION.reason}")
NUMPY = [torch.float32, torch.float64, torch.float16]


def arrays(*tensors: torch.Tensor | None) -> list[numpy.ndarray | None]:
    return [None if part is None else part.numpy() for part in tensors]


@pytest.mark.parametrize("dtype", NUMPY, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3)], ids=str)
def test_agrees_with_the_operators(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, residual = (random_rows(*shape, 24, dtype=dtype, seed=seed) for seed in (1, 2))
    left, right, mean = factors(24, 3, dtype)
    right = right.contiguous()
    weight = random_rows(24, dtype=left.dtype)
    eraser = arrays(left, right, mean)
    out = C.project(x.numpy(), *eraser)
    assert isinstance(out, numpy.ndarray) and out.dtype == x.numpy().dtype
    assert torch.equal(torch.from_numpy(out), ops.project(x, left, right, mean))
    y, summed = C.add_rms_norm_project(*arrays(x, residual, weight), 1e-6, *eraser, weight_offset=1.0)
    expected = ops.add_rms_norm_project(x, residual, weight, 1e-6, left, right, mean, weight_offset=1.0)
    assert torch.equal(torch.from_numpy(y), expected[0]) and torch.equal(torch.from_numpy(summed), expected[1])
    y, summed = C.add_layer_norm_project(*arrays(x, None, weight, weight), 1e-6, *eraser)
    expected = ops.add_layer_norm_project(x, None, weight, weight, 1e-6, left, right, mean)
    assert torch.equal(torch.from_numpy(y), expected[0]) and numpy.array_equal(summed, x.numpy())


def test_dlpack_in_place_and_with_an_index() -> None:
    x = random_rows(7, 48, dtype=torch.bfloat16)[:, :24]
    left, right, mean = stacked(2, 24, 3, torch.bfloat16)
    index = torch.tensor([0, 1, -1, 1, 0, -1, 1])
    expected = ops.project(x, left, right, mean, index)
    assert C.project(x, left, right.contiguous(), mean, index, out=x) is x
    assert torch.equal(x, expected)


def test_read_only_rows_are_read_and_not_written() -> None:
    left, right, mean = arrays(*(part.contiguous() for part in factors(24, 3, torch.float32)))
    x = random_rows(5, 24, dtype=torch.float32).numpy()
    kept = x.copy()
    x.flags.writeable = False
    C.project(x, left, right, mean)
    with pytest.raises(ValueError, match="out is read-only"):
        C.project(x, left, right, mean, out=x)
    assert numpy.array_equal(x, kept)


def test_keeps_nothing_alive() -> None:
    import sys

    left, right, mean = (part.contiguous() for part in factors(24, 3, torch.float32))
    x, out = random_rows(5, 24, dtype=torch.float32), torch.empty(5, 24)
    before = [sys.getrefcount(part) for part in (x, out, left)]
    for _ in range(10):
        C.project(x, left, right, mean, out=out)
    assert [sys.getrefcount(part) for part in (x, out, left)] == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0] * 8}, TypeError, "x is a <class 'list'>, expected an array of NumPy or of the DLPack protocol"),
        ({"x": numpy.ones((3, 8), dtype=int)}, TypeError, "x has another dtype than"),
        ({"x": numpy.ones((3, 7), dtype=numpy.float32)}, ValueError, "left has shape (8, 2), expected (7, 2)"),
        ({"x": numpy.ones((3, 16), dtype=numpy.float32)[:, ::2]}, ValueError, "make it contiguous first"),
        ({"x": numpy.ones((3, 8))}, TypeError, "left has another dtype than expected"),
        ({"x": torch.ones(3, 8)}, ValueError, "give the array that the result is written to"),
        ({"right": numpy.ones((8, 2), dtype=numpy.float32)}, ValueError, "right has shape (8, 2), expected (2, 8)"),
        ({"mean": numpy.ones(7, dtype=numpy.float32)}, ValueError, "mean has shape (7,), expected (8,)"),
        ({"index": numpy.zeros(3, dtype=numpy.int64)}, ValueError, "expected (..., d) and (E, d, k)"),
        ({"out": numpy.ones((2, 8), dtype=numpy.float32)}, ValueError, "out has shape (2, 8), expected (3, 8)"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    left, right, mean = arrays(*(part.contiguous() for part in factors(8, 2, torch.float32)))
    arguments = {"x": numpy.ones((3, 8), dtype=numpy.float32), "left": left, "right": right, "mean": mean} | change
    with pytest.raises(error, match=re.escape(message)):
        C.project(**arguments)


def test_an_unknown_eraser_raises() -> None:
    left, right, mean = stacked(2, 8, 2, torch.float32)
    with pytest.raises(IndexError, match="not there"):
        C.project(numpy.ones((1, 8), dtype=numpy.float32), *arrays(left, right.contiguous(), mean), numpy.array([2]))


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (numpy.empty(3, "V0"), TypeError),
        (numpy.ones((3, 4), ">f4"), TypeError),
        (numpy.ones((3, 4), "S4"), TypeError),
        (numpy.ones((3, 4), bool), TypeError),
        (numpy.array(1.0, numpy.float32), ValueError),
        (numpy.ones((3, 4), numpy.float32)[:, ::-1], ValueError),
    ],
    ids=["no bytes", "other order of bytes", "text", "bool", "no axis", "columns reversed"],
)
def test_arrays_that_kernels_would_misread_are_refused(x: numpy.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        C.project(x, numpy.ones((4, 1), numpy.float32), numpy.ones((1, 4), numpy.float32))


def test_factors_are_packed_within_their_bytes() -> None:
    size = C.packed_size(64, 32)
    left_t, right, packed = (
        numpy.ones((32, 64), numpy.float32),
        numpy.ones((32, 64), numpy.float32),
        numpy.empty(size, numpy.uint8),
    )
    if size:  # else no kernel here has a use for them
        C.pack(left_t, right, packed)
    for wrong in (
        (left_t, right, numpy.empty(size + 1, numpy.uint8)),
        (left_t[:-1], right, packed),
        (left_t, right.astype(numpy.float64), packed),
        (left_t, right, packed.astype(numpy.float32)),
        (left_t[:, ::-1], right, packed),
        (left_t[0], right[0], packed),
    ):
        with pytest.raises((ValueError, TypeError)):
            C.pack(*wrong)
    packed.flags.writeable = False
    with pytest.raises(ValueError, match="cannot be written to"):
        C.pack(left_t, right, packed)
