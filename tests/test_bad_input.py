"""Bad input: what came, what was expected, what to do, and the state as it was. Odd input: the right result."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import cases
import numpy as np
import pytest
import torch
from laws import Used, assert_same_bits, bits, settled_bits, within
from torch import Tensor

from leace_fast import Eraser, Moments, leace

NAN, INF = math.nan, math.inf
X, Y, Z = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3, torch.ones(10, 2)


def filled(**options: Any) -> Moments:
    """Return moments with rows both in the state and waiting for a full block, and a shard that was removed."""
    options = options or {"num_classes": 3}
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5000, 4, generator=generator)
    y = torch.arange(5000) % 3 if "num_classes" in options else torch.randn(5000, 2, generator=generator)
    shard = Moments(4, **options).update(x[:9], y[:9])
    return Moments(4, **options).update(x, y).merge(shard).remove(shard).update(x[:20], y[:20])


def refuses(moments: Moments, act: Callable[[], Any], error: type[Exception], *parts: str) -> None:
    """See a call fail with all parts in its message, and leave the moments as they were to the bit."""
    before = bits(moments)
    with pytest.raises(error) as caught:
        act()
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in {str(caught.value)!r}"
    assert_same_bits(bits(moments), before)


# ------------------------------------------------------------ what an update refuses


UPDATES: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "wrong width": ({"x": X[:, :3]}, ValueError, ("x has shape (10, 3)", "expected (..., 4)", "last dimension")),
    "no width": ({"x": torch.tensor(1.0)}, ValueError, ("x has shape ()", "expected (..., 4)")),
    "integer rows": ({"x": X.long()}, TypeError, ("x has dtype torch.int64", "expected a floating", "x.float()")),
    "complex rows": ({"x": X.to(torch.complex64)}, TypeError, ("x has dtype torch.complex64", "expected a floating")),
    "rows of eight bits": ({"x": X.to(torch.float8_e5m2)}, TypeError, ("float8_e5m2", "16 bits or more", "x.float()")),
    "label too large": ({"y": Y + 1}, ValueError, ("label 3", "3 such rows", "expected 0 to 2", "num_classes=3")),
    "label below zero": ({"y": Y - 1}, ValueError, ("label -1", "4 such rows", "-100 for rows to leave out")),
    "real-valued labels": ({"y": Y.float()}, TypeError, ("torch.float32", "expected integer labels", "target_dim=")),
    "one-hot labels": (
        {"y": torch.nn.functional.one_hot(Y)},
        ValueError,
        ("y has shape (10, 3)", "expected (10,)", "y.argmax(-1)"),
    ),
    "names of classes": (
        {"y": np.array(list("abcabcabca"))},
        TypeError,
        ("y is a ndarray that holds no numbers", "expected a tensor", "np.unique(y, return_inverse=True)[1]"),
    ),
    "rows of different lengths": ({"x": [[1.0], [1.0, 2.0]]}, TypeError, ("x is a list", "expected a tensor")),
    "too few labels": ({"y": Y[:9]}, ValueError, ("y has shape (9,)", "expected (10,)", "one label for each row")),
    "labels of another shape": ({"y": Y.reshape(2, 5)}, ValueError, ("y has shape (2, 5)", "expected (10,)")),
    "mask of another shape": ({"mask": torch.ones(9).bool()}, ValueError, ("mask has shape (9,)", "expected (10,)")),
    "real-valued mask": ({"mask": torch.ones(10)}, TypeError, ("mask has dtype torch.float32", "use weight=")),
    "mask of other integers": ({"mask": Y}, ValueError, ("integers other than 0 and 1", "use weight=")),
    "weight of another shape": ({"weight": torch.ones(9)}, ValueError, ("weight has shape (9,)", "expected (10,)")),
    "boolean weight": ({"weight": Y > 0}, TypeError, ("weight has dtype torch.bool", "use mask=")),
    "weight below zero": ({"weight": Y - 1.0}, ValueError, ("weight holds -1.0", "finite numbers >= 0", "4 are not")),
    "weight NaN": ({"weight": torch.full((10,), NAN)}, ValueError, ("weight holds nan", "10 are not")),
    "weight tiny": (
        {"weight": torch.full((10,), 1e-200, dtype=torch.float64)},
        ValueError,
        ("weight holds 1e-200", "1e-100 to 1e+100", "10 are not", "multiply all by a constant"),
    ),
    "weight huge": ({"weight": torch.full((10,), 1e200, dtype=torch.float64)}, ValueError, ("weight holds 1e+200",)),
    "rows whose squares overflow": (
        {"x": X.double() * 1e160},
        ValueError,
        ("x holds", "in size, expected at most 1e+150", "multiply x by a constant"),
    ),
    "weight infinite": ({"weight": torch.full((10,), INF)}, ValueError, ("weight holds inf", "finite")),
}


@pytest.mark.parametrize("name", UPDATES)
def test_update_refuses(name: str) -> None:
    change, error, parts = UPDATES[name]
    moments = filled()
    refuses(moments, lambda: moments.update(**({"x": X, "y": Y} | change)), error, *parts)


@pytest.mark.parametrize(
    ("y", "error", "parts"),
    [
        (Y, TypeError, ("torch.int64", "expected real-valued targets", "num_classes=", "y.double()")),
        (Z[:, :1], ValueError, ("y has shape (10, 1)", "expected (10, 2)")),
        (Z[:, 0], ValueError, ("y has shape (10,)", "expected (10, 2)")),
        (Z[:9], ValueError, ("y has shape (9, 2)", "expected (10, 2)")),
        (Z > 0, TypeError, ("torch.bool", "expected real-valued targets")),
    ],
)
def test_update_with_targets_refuses(y: Tensor, error: type[Exception], parts: tuple[str, ...]) -> None:
    moments = filled(target_dim=2)
    refuses(moments, lambda: moments.update(X, y), error, *parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"num_classes": 2, "target_dim": 2}, ("num_classes=2 and target_dim=2", "expected one of them")),
        ({"num_classes": 1}, ("num_classes is 1", "at least 2")),
        ({"num_classes": 2.0}, ("num_classes is 2.0", "expected an integer")),
        ({"target_dim": 0}, ("target_dim is 0", "at least 1")),
        ({"dim": 0, "num_classes": 2}, ("dim is 0", "at least 1")),
        ({"dim": True, "num_classes": 2}, ("dim is True", "expected an integer")),
        ({"target_dim": 1, "per_class": True}, ("per_class=True needs num_classes",)),
        ({"num_classes": 2, "nonfinite": "ignore"}, ("nonfinite is 'ignore'", "expected 'raise' or 'skip'")),
    ],
)
def test_construction_refuses(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    arguments: dict[str, Any] = {"dim": 4} | options
    with pytest.raises(ValueError) as caught:
        Moments(**arguments)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


# --------------------------------------------------------- what two moments refuse


@pytest.mark.parametrize("verb", ["merge", "remove"])
@pytest.mark.parametrize(
    ("other", "error", "parts"),
    [
        (Moments(5, 3), ValueError, ("differ in dim", "4 here, 5 there")),
        (Moments(4, 2), ValueError, ("differ in num_classes", "3 here, 2 there")),
        (Moments(4, target_dim=3), ValueError, ("differ in num_classes", "3 here, None there")),
        (Moments(4, 3, per_class=True), ValueError, ("differ in per_class", "False here, True there")),
        ({"dim": 4}, TypeError, ("got dict", "expected Moments")),
    ],
    ids=["dim", "classes", "targets", "by class", "dict"],
)
def test_other_kinds_are_refused(verb: str, other: Any, error: type[Exception], parts: tuple[str, ...]) -> None:
    moments = filled()
    refuses(moments, lambda: getattr(moments, verb)(other), error, *parts)


def test_removing_twice_is_refused() -> None:
    shard, moments = Moments(4, 3).update(X, Y), filled()
    moments.merge(shard).remove(shard)
    refuses(moments, lambda: moments.remove(shard), ValueError, "removed before", "merge them again first")
    copy = shard.copy()
    refuses(moments, lambda: moments.remove(copy), ValueError, "removed before")


def test_removing_more_rows_than_there_are_is_refused() -> None:
    moments = Moments(4, 3).update(X, Y)
    other = Moments(4, 3).update(X.repeat(2, 1), Y.repeat(2))
    parts = ("cannot remove [8, 6, 6] rows by class from [4, 3, 3]", "only what was merged")
    refuses(moments, lambda: moments.remove(other), ValueError, *parts)
    # As many rows, but of another class.
    other = Moments(4, 3).update(X[:4], torch.ones(4).long())
    refuses(moments, lambda: moments.remove(other), ValueError, "[0, 4, 0]")


def test_removing_what_was_never_merged_is_refused_where_it_shows() -> None:
    moments = filled()
    other = Moments(4, 3).update(X * 1e4, Y)
    refuses(
        moments, lambda: moments.remove(other), ValueError, "removing 10 of 5020 rows", "merge the remaining shards"
    )


def test_removing_what_dwarfs_the_rest_is_refused() -> None:
    """The digits of a small rest are gone once something 1e8 times as large was added to it."""
    small, large = Moments(4, 3).update(X.double(), Y), Moments(4, 3).update(X.double().flip(0) * 1e8, Y)
    both = small.copy().merge(large)
    refuses(both, lambda: both.remove(large), ValueError, "relative error", "at most 1e-03 is allowed")


def test_removed_shards_are_remembered_in_files(tmp_path: Any) -> None:
    shard, moments = Moments(4, 3).update(X, Y), filled()
    moments.merge(shard).remove(shard).save(tmp_path / "m")
    loaded = Moments.load(tmp_path / "m")
    refuses(loaded, lambda: loaded.remove(shard), ValueError, "removed before")


# ----------------------------------------------------------------- rows not finite


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_not_finite_are_skipped_and_counted(bad: float, dtype: torch.dtype, tmp_path: Any) -> None:
    x = X.to(dtype, copy=True)
    x[3, 1] = x[7, 0] = x[7, 2] = bad
    moments, clean = Moments(4, 3).update(x, Y), torch.tensor([0, 1, 2, 4, 5, 6, 8, 9])
    assert (moments.count, moments.skipped) == (8, 2)
    expected = Moments(4, 3).update(x[clean], Y[clean])
    assert torch.equal(moments.covariance, expected.covariance)
    said = ("2 rows held NaN or Inf and were left out, 8 rows were used", 'moments.nonfinite = "skip"')
    refuses(moments, lambda: leace(moments), ValueError, *said)
    refuses(moments, lambda: moments.merge(expected), ValueError, *said)
    refuses(expected, lambda: expected.merge(moments), ValueError, *said)
    refuses(moments, lambda: moments.save(tmp_path / "m"), ValueError, *said)
    assert not (tmp_path / "m").exists()

    moments.nonfinite = "skip"
    moments.save(tmp_path / "m")
    assert Moments.load(tmp_path / "m").skipped == 2 and leace(moments).rank == 2
    both = Moments(4, 3, nonfinite="skip").merge(moments).merge(expected)
    assert (both.count, both.skipped) == (16, 2)
    assert both.remove(moments).skipped == 0


def test_targets_that_are_not_finite_are_skipped_and_counted() -> None:
    z = torch.randn(10, 2)
    z[2, 0], z[5, 1] = NAN, INF
    moments = Moments(4, target_dim=2).update(X, z)
    assert (moments.count, moments.skipped) == (8, 2)
    assert torch.isfinite(moments.cross_covariance).all()


def test_rows_that_are_left_out_may_hold_anything() -> None:
    """Padding often holds NaN: neither it nor its label is looked at."""
    x, y = X.clone(), Y.clone()
    x[2], x[4], y[5] = NAN, INF, 77
    mask = torch.ones(10).bool()
    mask[[2, 5]], y[4] = False, -100
    moments = Moments(4, 3).update(x, y, mask=mask)
    assert (moments.count, moments.skipped) == (7, 0)
    weight = torch.ones(10)
    weight[[2, 4, 5]] = 0
    assert Moments(4, 3).update(x, y, weight=weight).skipped == 0


def test_float16_that_overflowed_is_counted() -> None:
    x = (X * 40_000).half()
    overflowed = int(x.isinf().any(1).sum())
    assert 0 < overflowed < 10
    moments = Moments(4, 3, nonfinite="skip").update(x, Y)
    assert moments.skipped == overflowed and torch.isfinite(moments.covariance).all()


def test_float16_rows_are_computed_in_float32() -> None:
    """A product of two halves of 300 is beyond float16, and so is a sum of many: neither is formed there."""
    x = (torch.randn(6000, 8, generator=torch.Generator().manual_seed(2)) * 300 + 20_000).half()
    y = (x[:, 0] > 20_000).long()
    moments = Moments(8, 2).update(x, y)
    exact = Used(cases.Data(x, y, {"num_classes": 2}))
    within(moments.mean - exact.mean(exact.x), 1e-9, "mean")
    out = leace(moments)(x)
    assert out.isfinite().all() and out.dtype == torch.float16
    # Left and right times x leave the range of float16; the result does not.
    eraser = Eraser(torch.full((8, 1), 1e4), torch.full((1, 8), 1.25e-5), moments.mean)
    assert eraser(x).isfinite().all()


# -------------------------------------------------------------- what a fit refuses


def test_no_rows() -> None:
    empty = Moments(4, 3)
    refuses(empty, lambda: leace(empty), ValueError, "hold no rows", "call update(x, y) first")
    for name in ("mean", "covariance", "cross_covariance", "class_mean_differences", "target_covariance", "variance"):
        refuses(empty, lambda name=name: getattr(empty, name), ValueError, "needs rows", "call update(x, y) first")
    assert (empty.count, empty.total_weight, empty.effective_count) == (0, 0.0, 0.0)


def test_one_class_only() -> None:
    moments = Moments(4, 3).update(X, torch.ones(10).long())
    before = settled_bits(moments)
    with pytest.raises(ValueError, match=r"only class 1 has rows \(10 of them\), expected at least two"):
        leace(moments)
    assert_same_bits(settled_bits(moments), before)


def test_what_was_not_kept() -> None:
    moments = filled()
    refuses(moments, lambda: moments.class_covariances, ValueError, "were not kept", "per_class=True")
    targets = filled(target_dim=2)
    refuses(targets, lambda: targets.class_means, ValueError, "needs classes", "cross_covariance")


# ------------------------------------------------------- odd input with a right result


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"num_classes": 3, "per_class": True}, {"target_dim": 2}])
@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)], ids=str)
def test_an_empty_batch_does_nothing(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    moments = filled(**options)
    before = bits(moments)
    y = torch.zeros(*shape, 2) if "target_dim" in options else torch.zeros(shape, dtype=torch.int64)
    moments.update(torch.zeros(*shape, 4), y, mask=torch.zeros(shape).bool(), weight=torch.zeros(shape))
    moments.update(torch.zeros(*shape, 4), y)
    assert_same_bits(bits(moments), before)
    fresh = Moments(4, **options).update(torch.zeros(*shape, 4), y)
    assert_same_bits(bits(fresh), bits(Moments(4, **options)))


def test_a_batch_of_which_nothing_is_used_does_nothing() -> None:
    moments = filled()
    before = bits(moments)
    moments.update(X, torch.full((10,), -100)).update(X, Y, mask=torch.zeros(10).bool()).update(X, Y, weight=Y * 0)
    assert_same_bits(bits(moments), before)


@pytest.mark.parametrize("scale", [1e30, 1e-30, 5e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_very_large_and_very_small_rows(scale: float, dtype: torch.dtype) -> None:
    """Squares of these are outside the range of float32: the result is that of ordinary rows, rescaled."""
    data = cases.classes(5000, 6, 3, noise=0.1, condition=10.0)
    x = ((data.x - 1) / 4 * scale).to(dtype)
    assert x.isfinite().all()
    moments, exact = Moments(6, 3).update(x, data.y), Moments(6, 3).update(x.double(), data.y)
    unit = exact.variance.sqrt()
    within((moments.covariance - exact.covariance) / unit / unit[:, None], 1e-4, "covariance")
    within((moments.mean - exact.mean) / unit, 1e-12, "mean")
    eraser = leace(moments)
    assert eraser.rank == 2
    gaps = Moments(6, 3).update(eraser(x.double()), data.y).class_mean_differences
    within(gaps / unit, 1e-12, "gap")
    assert eraser(x).isfinite().all()


def test_float64_columns_that_vary_too_little_are_named() -> None:
    """Squares of 1e-170 are zero in float64: the column would pass for a constant one."""
    x = X.double()
    x[:, 1:3] *= 1e-170
    with pytest.warns(UserWarning, match="2 columns of x vary by less than 1e-145 .* Multiply x by a constant"):
        assert Moments(4, 3).update(x, Y).count == 10
    x[:, 1:3] = 1e-170
    x[:, 3] *= 1e-140
    assert Moments(4, 3).update(x, Y).variance[3] > 0  # constant columns, and squares that can be held: nothing to say


def test_extreme_weights_in_range_are_fine() -> None:
    for weight in (1e-99, 1e99):
        moments = Moments(4, 3).update(X, Y, weight=torch.full((10,), weight, dtype=torch.float64))
        assert moments.effective_count == pytest.approx(10)
        within(moments.covariance - Moments(4, 3).update(X, Y).covariance, 1e-6, "covariance")
        assert leace(moments).rank == 2


@pytest.mark.parametrize("make", cases.HARD.values(), ids=cases.HARD)
def test_hard_data_set_by_set(make: Callable[[], cases.Data]) -> None:
    """Constant and repeated columns, fewer rows than dimensions, means far off, rare classes: nothing is left."""
    data = make()
    eraser, used = leace(data.moments()), Used(data)
    within(used.gaps(eraser(used.x)) / used.scale[:, None], 1e-12, "gap")


def test_any_strides() -> None:
    plain = Moments(4, 3).update(X, Y).covariance
    assert torch.equal(Moments(4, 3).update(X.mT.contiguous().mT, Y).covariance, plain)
    wide = torch.zeros(20, 8)
    wide[::2, ::2] = X
    labels = torch.stack([Y, Y + 9], 1)[:, 0]
    assert torch.equal(Moments(4, 3).update(wide[::2, ::2], labels).covariance, plain)
    expanded = Moments(4, 3).update(X[:1].expand(10, 4), Y)
    assert not expanded.covariance.any() and expanded.count == 10


def test_no_graph_is_kept() -> None:
    x, weight = X.clone().requires_grad_(), torch.ones(10, requires_grad=True)
    z = torch.ones(10, 2, requires_grad=True)
    moments = Moments(4, 3).update(x * 2, Y, weight=weight)
    targets = Moments(4, target_dim=2).update(x * 2, z * 3)
    for held in (bits(moments), bits(targets), settled_bits(moments), settled_bits(targets)):
        assert not any(part.requires_grad for part in held.values() if isinstance(part, Tensor))
    with torch.enable_grad():
        eraser = leace(moments)
    assert not eraser.left.requires_grad and not eraser.right.requires_grad
    with torch.inference_mode():
        moments.update(X, Y)
    assert moments.update(X, Y).count == 30


def test_what_the_caller_does_afterwards_changes_nothing() -> None:
    """Rows that wait for a full block are copies, and so is what was handed out."""
    x, y = X.clone(), Y.clone()
    moments = Moments(4, 3).update(x, y)
    before = settled_bits(moments)
    for tensor in (x, y, moments.mean, moments.class_counts, moments.covariance):
        tensor.zero_()
    assert_same_bits(settled_bits(moments), before)


def test_messages_say_what_to_do() -> None:
    """Every message that a user can meet names what came and what was expected, and is one sentence or two."""
    moments = filled()
    for change, error, _ in UPDATES.values():
        with pytest.raises(error) as caught:
            moments.update(**({"x": X, "y": Y} | change))
        assert re.search(r"expected|use|hold", str(caught.value)) and len(str(caught.value)) < 250
