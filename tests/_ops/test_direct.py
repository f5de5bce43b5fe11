"""Straight to the kernel, or through the dispatcher: the same bits, and never past whoever watches the call."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
from operands import factors, random_rows
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from leace_fast import Eraser
from leace_fast._ops import Bound, BoundNorm
from leace_fast._ops import operators as ops
from leace_fast._ops.direct import _no_kernel as no_kernel

needs_kernels = pytest.mark.skipif(not ops.EXTENSION.present, reason=f"extension: {ops.EXTENSION.reason}")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def bound(dtype: torch.dtype, dim: int = 24) -> Bound:
    return Bound(*factors(dim, 3, dtype))


def as_kept(dtype: torch.dtype, dim: int = 24) -> Bound:
    """With factors as an eraser keeps them: the kernel can read them as they lie."""
    left, right, mean = factors(dim, 3, dtype)
    return Bound(left.mT.contiguous().mT, right.contiguous(), mean)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways_give_the_same_bits(dtype: torch.dtype) -> None:
    erase = as_kept(dtype)
    assert erase.kernel is not no_kernel
    assert bound(dtype).kernel is no_kernel, "left does not lie by rank: only the operator can copy it"
    for shape in ((), (1,), (5,), (2, 3), (0,), (2, 0, 3)):
        x = random_rows(*shape, 24, dtype=dtype)
        assert torch.equal(erase(x), ops.project(x, *erase.factors))
    wide = random_rows(5, 48, dtype=dtype)
    for x in (wide[:, :24], wide[:, ::2], wide[:, :24].mT.contiguous().mT, random_rows(20_000, 24, dtype=dtype)):
        assert torch.equal(erase(x), ops.project(x, *erase.factors))


@needs_kernels
def test_goes_straight_where_nothing_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **options: object) -> Tensor:
        raise AssertionError("the operator was called")

    erase = as_kept(torch.float32)
    x = random_rows(2, 24, dtype=torch.float32)
    expected = ops.project(x, *erase.factors)
    with torch.no_grad():
        also = ops.project(x.requires_grad_(), *erase.factors)
        monkeypatch.setattr(ops, "project", forbidden)
        assert torch.equal(erase(x), expected) and torch.equal(also, expected)
    with torch.inference_mode():
        assert torch.equal(erase(x.detach()), expected)
    with pytest.raises(AssertionError, match="operator was called"):
        erase(x)  # needs a gradient


def as_norm(centred: bool, dtype: torch.dtype) -> BoundNorm:
    return BoundNorm(as_kept(dtype).factors, centred, 1e-5, 0.0 if centred else 1.0)


def through_operator(norm: BoundNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if norm.centred:
        return ops.add_layer_norm_project(x, None, weight, bias, norm.eps, *norm.factors)[0]
    offset = norm.weight_offset
    return ops.add_rms_norm_project(x, None, weight, norm.eps, *norm.factors, weight_offset=offset)[0]


@needs_kernels
@pytest.mark.parametrize("centred", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_give_the_same_bits_both_ways(dtype: torch.dtype, centred: bool) -> None:
    norm, weight = as_norm(centred, dtype), torch.nn.Parameter(random_rows(24, dtype=dtype))
    bias = random_rows(24, dtype=dtype) if centred else None
    assert norm.kernel is not no_kernel
    with torch.no_grad():
        for shape in ((), (1,), (2, 3), (0,), (20_000,)):
            x = random_rows(*shape, 24, dtype=dtype)
            for w, b in ((weight, bias), (None, None), (random_rows(48, dtype=dtype)[::2], bias)):
                assert torch.equal(norm(x, w, b), through_operator(norm, x, w, b))
    x = random_rows(2, 24, dtype=dtype)
    with torch.no_grad():
        before = norm(x, weight)
        weight.mul_(2)  # read at each call
        assert torch.equal(norm(x, weight), through_operator(norm, x, weight, None))
        assert not torch.equal(norm(x, weight), before)
    with pytest.raises(ValueError, match="weight has shape"):
        norm(x, weight[:5])


@needs_kernels
def test_what_the_kernel_is_not_made_for_is_left_to_the_operator() -> None:
    erase, norm = as_kept(torch.float32), as_norm(False, torch.float32)
    x, weight = random_rows(2, 24, dtype=torch.float32), torch.ones(24)
    assert erase.kernel(x) is not None and norm.kernel(x, weight, None) is not None

    class Own(Tensor):
        pass

    for other in (
        x.double(),
        x.int(),
        x[:, :12],
        x.mT.contiguous().mT,
        x.to("meta"),
        x.as_subclass(Own),
        x.to_sparse(),
        torch._neg_view(x),  # type: ignore[attr-defined]
        torch.tensor(1.0),
        x.numpy(),
        None,
    ):
        assert erase.kernel(other) is None and norm.kernel(other, weight, None) is None
        assert erase.kernel(other, True) is None
        assert other is None or norm.kernel(x, other, None) is None
    for arguments in ((x,), (x, True)):
        with pytest.raises(TypeError, match="a weight and a bias"):
            norm.kernel(*arguments)
    with pytest.raises(TypeError, match="a tensor and True"):
        erase.kernel(x, 1)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_both_ways(dtype: torch.dtype) -> None:
    erase, wide = as_kept(dtype), random_rows(40, 48, dtype=dtype)
    for shape in ((), (1,), (5,), (2, 3), (0,), (3_000,)):
        x = random_rows(*shape, 24, dtype=dtype)
        expected, version = erase(x), x._version
        assert erase.apply_(x) is x and torch.equal(x, expected) and x._version == version + 1
    strided, rest = wide[:, :24], wide[:, 24:].clone()
    expected = erase(strided)
    assert erase.apply_(strided) is strided and torch.equal(strided, expected) and torch.equal(wide[:, 24:], rest)
    with torch.inference_mode():
        x = random_rows(2, 24, dtype=dtype)
        expected = erase(x)
        assert torch.equal(erase.apply_(x), expected)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        leaf = random_rows(2, 24, dtype=dtype).requires_grad_()
        double = leaf * 2
        loss = double.square().sum()
        erase.apply_(double.detach())
        loss.backward()


@needs_kernels
def test_threads_change_no_bit() -> None:
    erase, norm, before = as_kept(torch.float32, 512), as_norm(True, torch.float32), torch.get_num_threads()
    x, weight = random_rows(3_000, 512, dtype=torch.float32), torch.ones(24)
    rows = random_rows(40_000, 24, dtype=torch.float32)
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append((erase.kernel(x), norm.kernel(rows, weight, None)))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


@needs_kernels
def test_a_profiler_sees_the_operator() -> None:
    erase, norm = as_kept(torch.float32), as_norm(False, torch.float32)
    x = random_rows(2, 24, dtype=torch.float32)
    with torch.profiler.profile() as seen, torch.no_grad():
        norm(erase.apply_(erase(x)))
    names = {event.key for event in seen.key_averages()}
    assert {f"leace_fast::{name}" for name in ("project", "project_", "add_rms_norm_project")} <= names


@needs_kernels
def test_other_threads_run_while_many_rows_are_erased() -> None:
    """The kernel lets go of Python's lock: a thread that wants it does not wait for the end of the call."""
    erase, x = as_kept(torch.float32, 256), random_rows(100_000, 256, dtype=torch.float32)
    stop, laps = threading.Event(), [0]

    def count() -> None:
        while not stop.wait(1e-4):
            laps[0] += 1

    interval = sys.getswitchinterval()
    counter = threading.Thread(target=count)
    sys.setswitchinterval(10.0)  # s: nobody is asked to hand the lock over
    try:
        counter.start()
        before = laps[0]
        for _ in range(5):
            assert erase.kernel(x, True) is not None
        assert laps[0] > before + 50  # not just between the calls
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        counter.join()


@needs_kernels
def test_a_gradient_of_the_weight_alone_goes_through() -> None:
    norm, weight = as_norm(False, torch.float32), torch.nn.Parameter(torch.ones(24))
    x = random_rows(2, 24, dtype=torch.float32)
    norm(x, weight).square().sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_and_transforms_go_through(backend: str, dtype: torch.dtype) -> None:
    erase = as_kept(dtype, dim=6)
    x = random_rows(3, 6, dtype=dtype)
    expected = torch.ones(6, dtype=dtype) @ (torch.eye(6, dtype=dtype) - erase.factors[0] @ erase.factors[1])
    leaf = x.clone().requires_grad_()
    erase(leaf).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected.expand(3, 6))
    torch.testing.assert_close(torch.func.grad(lambda rows: erase(rows).sum())(x), expected.expand(3, 6))
    torch.testing.assert_close(torch.func.vmap(erase)(x), erase(x))
    torch.testing.assert_close(torch.func.vmap(erase, in_dims=1)(x.mT), erase(x))
    torch.testing.assert_close(torch.func.jacrev(erase)(x[0]).sum(0), expected)


def test_vmap_with_an_index(backend: str) -> None:
    left, right, mean = (part.expand(2, *part.shape) for part in factors(6, 2, torch.float32))
    x, index = random_rows(4, 3, 6, dtype=torch.float32), torch.randint(-1, 2, (4, 3))
    expected = ops.project(x, left, right, mean, index)
    batched = torch.func.vmap(lambda rows, numbers: ops.project(rows, left, right, mean, numbers))(x, index)
    torch.testing.assert_close(batched, expected)
    same = torch.func.vmap(lambda rows: ops.project(rows, left, right, mean, index[0]))(x)
    torch.testing.assert_close(same, ops.project(x, left, right, mean, index[:1].expand(4, 3)))
    many = torch.func.vmap(ops.project)(x[:2], left, right, mean)
    torch.testing.assert_close(many[1], ops.project(x[1], left[1], right[1], mean[1]))


def test_modes_and_fake_tensors_see_the_operator(backend: str) -> None:
    erase = as_kept(torch.float32)
    x = random_rows(2, 24, dtype=torch.float32)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    norm = as_norm(False, torch.float32)
    for call in (erase, norm):
        seen.clear()
        with Watch():
            call(x)
        assert any("leace_fast" in name if backend == "kernels" else "mm" in name for name in seen)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert erase(mode.from_tensor(x)).shape == x.shape


@needs_kernels
def test_compiles_without_a_graph_break() -> None:
    eraser = Eraser(*factors(24, 3, torch.float32))
    x = random_rows(2, 24, dtype=torch.float32)
    out = torch.compile(lambda rows: eraser(rows + 1), fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(out, eraser(x + 1))


@needs_kernels
def test_a_view_with_its_sign_elsewhere() -> None:
    erase = as_kept(torch.float32, dim=2)
    x = torch.randn(3, 2, dtype=torch.complex64).conj().imag.contiguous()
    negative = torch._neg_view(x)  # type: ignore[attr-defined]
    torch.testing.assert_close(erase(negative), erase(negative.clone()))


def test_a_copy_has_memory_of_its_own(backend: str) -> None:
    eraser = Eraser(*factors(24, 3, torch.float32))
    x = random_rows(2, 24, dtype=torch.float32)
    expected = eraser(x)
    copied = copy.deepcopy(eraser)
    del eraser
    torch.ones(100, 24)  # would take the place of the factors, had they been freed
    assert torch.equal(copied(x), expected)
