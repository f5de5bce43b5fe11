"""What must hold of every statistic and every eraser, as plain functions; `test_laws.py` runs them over the tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Case, Data, Precision
from torch import Tensor

from leace_fast import Eraser, Moments

Update = dict[str, Any]  # the arguments of one call of `Moments.update`
New = Callable[[], Moments]

SUMS = 1e-13  # means are sums in float64 whatever the dtype of the rows
ZERO = 4e-9  # a coefficient or a gradient that is nothing but rounding


# ------------------------------------------------------------------- moments


def bits(moments: Moments) -> dict[str, Any]:
    """Return everything that some moments hold, to the bit: the state, the staged rows, and the counters."""
    sums = moments._sums
    held = {f"state.{name}": tensor.clone() for name, tensor in sums.state.tensors().items()}
    if sums.groups is not None and len(sums.groups):
        held |= {f"groups.{name}": tensor for name, tensor in sums.groups.tensors().items()}
    if sums.staged:
        rows = sums.staged.filled()
        held |= {f"staged.{name}": part.clone() for name, part in vars(rows).items() if isinstance(part, Tensor)}
    return {**held, "kind": asdict(sums.kind), "counters": asdict(sums.tally)}


def settled_bits(moments: Moments) -> dict[str, Any]:
    """Return the same with the staged rows taken in."""
    twin = moments.copy()
    twin._flush()
    return bits(twin)


def assert_same_bits(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            same = value.dtype == two[name].dtype and torch.equal(value, two[name])
            assert same, f"{name} differs"
        else:
            assert value == two[name], name


def within(difference: Tensor, bound: Tensor | float, what: str) -> None:
    """Hold a difference to a bound."""
    share = (difference.abs() / bound).nan_to_num(0.0, torch.inf)  # 0 / 0: nothing differs
    assert not difference.isnan().any(), f"{what}: NaN"
    assert (share <= 1).all(), f"{what}: {float(difference.abs().max()):.1e}, {float(share.max()):.3g} times the bound"


def assert_close(one: Moments, two: Moments, tolerance: float, sums: float = SUMS) -> None:
    """Compare what is derived: counts exactly, means and covariances in units of the standard deviations."""
    assert torch.equal(one.class_counts, two.class_counts)
    assert one.skipped == two.skipped
    within(one.class_weights - two.class_weights, sums * two.class_weights, "weights")
    assert one.effective_count == pytest.approx(two.effective_count, rel=sums)
    if not one.count:
        return
    scale = two.variance.sqrt() + 1e-12 * two.mean.abs()
    square = torch.outer(scale, scale)
    within(one.mean - two.mean, sums * (scale + two.mean.abs()), "mean")
    within(one.covariance - two.covariance, tolerance * square, "covariance")
    targets = two.target_covariance.diagonal().clamp_min(0).sqrt() + 1e-12
    within(one.cross_covariance - two.cross_covariance, 10 * sums * torch.outer(scale, targets), "cross-covariance")
    within(one.target_covariance - two.target_covariance, 10 * sums * torch.outer(targets, targets), "targets")
    if one.num_classes:
        present = one.class_counts > 0
        share = (one.class_weights / one.total_weight)[present, None]
        difference = (one.class_mean_differences - two.class_mean_differences)[present]
        within(difference, 10 * sums * scale / share, "class means")
    if (cells := two.cells) is not None:
        found = one.cells
        assert found is not None
        assert all(torch.equal(getattr(found, n), getattr(cells, n)) for n in ("groups", "classes", "counts"))
        within(found.weights - cells.weights, sums * cells.weights, "weights of cells")
        apart, wanted = ((c.means - c.means[:1])[1:] for c in (found, cells))
        within(
            apart - wanted, 10 * sums * (scale + two.mean.abs()) * two.total_weight / cells.weights[1:, None], "cells"
        )
    if one.per_class:
        difference = (one.class_covariances - two.class_covariances)[present]
        within(difference, tolerance * square / share[:, None], "class covariances")


def one_pass(new: New, updates: list[Update]) -> Moments:
    moments = new()
    for update in updates:
        assert moments.update(**update) is moments
    return moments


def merge_is_one_pass(new: New, updates: list[Update], precision: Precision) -> None:
    merged = new()
    for update in updates:
        assert merged.merge(new().update(**update)) is merged
    assert_close(merged, one_pass(new, updates), precision.moments)


def merge_commutes_and_associates(new: New, updates: list[Update], precision: Precision) -> None:
    a, b, c = one_pass(new, updates[:1]), one_pass(new, updates[1:2]), one_pass(new, updates[2:])
    assert_close(a.copy().merge(b), b.copy().merge(a), 1e-12)
    assert_close(a.copy().merge(b).merge(c), a.copy().merge(b.copy().merge(c)), 1e-12)


def empty_is_the_identity(new: New, updates: list[Update], precision: Precision) -> None:
    moments = one_pass(new, updates)
    assert_same_bits(bits(new().merge(moments)), settled_bits(moments))
    assert_same_bits(bits(moments.copy().merge(new())), settled_bits(moments))
    nothing = {"counters": None}  # what was removed is noted
    assert_same_bits(bits(moments.copy().remove(new())) | nothing, settled_bits(moments) | nothing)
    assert_same_bits(bits(new().merge(new())), bits(new()))


def remove_undoes_merge(new: New, updates: list[Update], precision: Precision) -> None:
    rest, other = one_pass(new, updates[:1]), one_pass(new, updates[1:])
    both = rest.copy().merge(other)
    if is_enough(rest, both):
        spreads = [(one.variance, one.target_covariance.diagonal()) for one in (both, rest)]
        shrunk = max(float((old / new).nan_to_num(1.0).max()) for old, new in zip(*spreads, strict=True) if len(old))
        lost = shrunk * both.total_weight / rest.total_weight
        assert_close(both.remove(other), rest, 1e-12 * lost, SUMS * lost)
    nothing = {"counters": None}
    assert_same_bits(bits(other.copy().remove(other)) | nothing, bits(new()) | nothing)


def is_enough(rest: Moments, both: Moments) -> bool:
    """Tell whether more than rounding is left when all but `rest` is removed from `both`."""
    if rest.count < 2:
        return False
    spreads = [(one.variance, one.target_covariance.diagonal()) for one in (rest, both)]
    return all(bool((left >= 1e-6 * old).all()) for left, old in zip(*spreads, strict=True))


def inputs_stay_unchanged(new: New, updates: list[Update], precision: Precision) -> None:
    copies = [{name: part.clone() for name, part in update.items() if part is not None} for update in updates]
    one, two = one_pass(new, updates[:1]), one_pass(new, updates[1:])
    before, enough = bits(two), is_enough(one.copy(), one.copy().merge(two))
    one.merge(two)
    if enough:
        one.remove(two)
    assert_same_bits(bits(two), before)
    for update, copy in zip(updates, copies, strict=True):
        for name, part in copy.items():
            assert torch.equal(update[name], part), name


def what_is_handed_out_is_a_copy(new: New, updates: list[Update], precision: Precision) -> None:
    taken = [{name: part if part is None else part.clone() for name, part in update.items()} for update in updates]
    moments = one_pass(new, taken)
    before = settled_bits(moments)
    names = ["class_counts", "class_weights", "target_covariance", "mean", "covariance", "variance", "cross_covariance"]
    names += ["class_means", "class_mean_differences", "means_about_shift"] if moments.num_classes else []
    names += ["class_covariances"] if moments.per_class else []
    for name in names if moments.count else ["class_counts", "class_weights"]:
        getattr(moments, name).fill_(3)
    for update in taken:
        for part in update.values():
            if part is not None:
                part.zero_()
    assert_same_bits(settled_bits(moments), before)


def files_are_exact(new: New, updates: list[Update], precision: Precision) -> None:
    moments = one_pass(new, updates)
    with tempfile.TemporaryDirectory() as folder:
        moments.save(Path(folder) / "m.safetensors")
        loaded = Moments.load(Path(folder) / "m.safetensors")
    assert repr(loaded) == repr(moments)
    assert_same_bits(bits(loaded), settled_bits(moments))
    # Going on from the file and going on without it are the same to the bit.
    assert_same_bits(bits(loaded.update(**updates[0])), bits(moments.update(**updates[0])))


def update_after_merge(new: New, updates: list[Update], precision: Precision) -> None:
    moments = one_pass(new, updates[:1]).merge(one_pass(new, updates[1:2]))
    for update in updates[2:]:
        moments.update(**update)
    assert_close(moments, one_pass(new, updates), precision.moments)


def chunking_does_not_matter(new: New, updates: list[Update], precision: Precision) -> None:
    together: Update = stacked(updates)
    whole = new().update(**together)
    assert_same_bits(bits(one_pass(new, updates)), bits(whole))
    rows = [one for update in updates for one in cut(update, 1)]
    assert_same_bits(bits(one_pass(new, rows)), bits(whole))
    in_one_text: Update = {name: part if part is None else part[None] for name, part in together.items()}
    assert_same_bits(bits(new().update(**in_one_text)), bits(whole))


def stacked(updates: list[Update]) -> Update:
    """Return several updates as one."""
    return {n: None if updates[0][n] is None else torch.cat([u[n] for u in updates]) for n in updates[0]}


def cut(update: Update, size: int) -> list[Update]:
    """Return an update as several of at most `size` rows."""
    n = len(update["x"])
    return [
        {name: part if part is None else part[begin : begin + size] for name, part in update.items()}
        for begin in range(0, n, size)
    ]


MOMENTS_LAWS = [
    merge_is_one_pass,
    merge_commutes_and_associates,
    empty_is_the_identity,
    remove_undoes_merge,
    inputs_stay_unchanged,
    what_is_handed_out_is_a_copy,
    files_are_exact,
    update_after_merge,
    chunking_does_not_matter,
]


# ------------------------------------------------------------------- erasers


class Used:
    """The rows of a data set that count, in float64: x, one-hot labels or targets z, weights that sum to 1."""

    def __init__(self, data: Data) -> None:
        keep = torch.ones(len(data.x), dtype=torch.bool) if data.mask is None else data.mask.clone()
        if not data.options:
            self.z = torch.ones(int(keep.sum()), 1, dtype=torch.float64)
        elif "num_classes" in data.options:
            keep &= data.y != -100
            self.z = torch.nn.functional.one_hot(data.y[keep], data.num_classes).double()
        else:
            self.z = data.y[keep].double().reshape(int(keep.sum()), -1)
        self.keep, self.classes = keep, "num_classes" in data.options
        w = torch.ones(len(self.z), dtype=torch.float64) if data.weight is None else data.weight[keep].double()
        self.w = w / w.sum()
        self.x = data.x[keep].double()
        self.spread = self.deviation(self.x)
        self.scale = torch.maximum(self.spread, self.mean(self.x).abs()).clamp_min(1e-300)
        # Of a constant column, what varies is rounding.
        self.constant = self.spread <= 1e-14 * self.scale
        self.unit = torch.where(self.constant, self.scale, self.spread)

    def mean(self, rows: Tensor) -> Tensor:
        return self.w @ rows

    def deviation(self, rows: Tensor) -> Tensor:
        return (self.w @ (rows - self.mean(rows)).square()).sqrt()

    def covariance(self, rows: Tensor) -> Tensor:
        centred = rows - self.mean(rows)
        return centred.mT @ (centred * self.w[:, None])

    def directions(self, rows: Tensor, least: float) -> tuple[Tensor, Tensor]:
        """Return variances above `least` of the largest before erasure, in units of the deviations, and their axes."""
        before, after = (self.covariance(part) / torch.outer(self.unit, self.unit) for part in (self.x, rows))
        values, vectors = torch.linalg.eigh(after)
        real = values > least * torch.linalg.eigvalsh(before)[-1]
        return values[real], vectors[:, real]

    def gaps(self, rows: Tensor) -> Tensor:
        """Return (d, k) class means less the overall mean, or (d, t) covariances over the targets' deviations."""
        z = self.z - self.mean(self.z)
        cross = (rows - self.mean(rows)).mT @ (z * self.w[:, None])
        shares = self.mean(self.z) if self.classes else self.deviation(self.z)
        return cross[:, shares > 0] / shares[shares > 0]


def rounding(eraser: Eraser, x: Tensor) -> Tensor:
    """Return (d,) a bound on the rounding error of the eraser in float64 on some rows."""
    left, right = eraser.left.double().abs(), eraser.right.double().abs()
    centred = (x if eraser.mean is None else x - eraser.mean.double()).abs().amax(0)
    return 2.0**-52 * 64 * (x.abs().amax(0) + left @ (right @ centred))


def concept_is_gone(case: Case, data: Data) -> None:
    """Class means are equal, and targets uncorrelated with x, to 1e-12 of max(std, |mean|)."""
    eraser, used = case.on(data), Used(data)
    left = (used.gaps(eraser(used.x)) / used.scale[:, None]).abs().max()
    before = (used.gaps(used.x) / used.scale[:, None]).abs().max()
    if case.complete:
        assert left <= 1e-12, f"{left:.1e} is left of {before:.1e}"
    else:
        assert torch.isfinite(left)


def mean_is_kept(case: Case, data: Data) -> None:
    eraser, used = case.on(data), Used(data)
    moved = (used.mean(eraser(used.x)) - used.mean(used.x)).abs()
    if case.affine:
        assert eraser.mean is not None
        assert not case.keeps_mean or (moved <= 2 * rounding(eraser, used.x)).all()  # two means are compared
    else:
        assert eraser.mean is None
        assert torch.equal(eraser(torch.zeros(data.dim)), torch.zeros(data.dim))


def erasing_twice_is_erasing_once(case: Case, data: Data) -> None:
    if not case.idempotent:
        return
    eraser, used = case.on(data), Used(data)
    once = eraser(used.x)
    assert ((eraser(once) - once).abs() <= rounding(eraser, used.x)).all()
    assert (eraser.right.double() @ eraser.left.double() - torch.eye(eraser.rank)).abs().max() <= 1e-11


def rank_is_that_of_the_concept(case: Case, data: Data) -> None:
    eraser, used = case.on(data), Used(data)
    most = int((used.mean(used.z) > 0).sum()) - 1 if used.classes else used.z.shape[1]
    most = min(most, data.dim)
    if case.complete and case.ranked:
        assert eraser.rank == (most if data.rank is None else data.rank)
    assert eraser.rank <= most or not case.ranked
    if eraser.report:
        assert eraser.report.rank == eraser.rank
    x = used.x.double()
    changed = torch.linalg.svdvals((eraser(x) - x) / used.scale)
    assert int((changed > 1e-9 * changed[0]).sum()) <= eraser.rank


def no_linear_classifier_can_tell(case: Case, data: Data) -> None:
    """Least squares finds nothing, and the gradient of the logistic loss is 0 at the best constant prediction."""
    eraser, used = case.on(data), Used(data)
    if not case.complete:
        return
    rows = eraser(used.x)
    z = (used.z - used.mean(used.z)) * used.w[:, None]
    gradient = ((rows - used.mean(rows)) / used.unit).mT @ z  # of the logistic loss, and of the squares
    assert gradient.abs().max() < ZERO * max(1.0, float(used.deviation(used.z).max()))
    values, vectors = used.directions(rows, 1e-8)
    coefficients = vectors @ ((vectors.mT @ gradient) / values[:, None])
    assert coefficients.abs().max() < ZERO, f"coefficient {float(coefficients.abs().max()):.1e}"


def nothing_is_left_in_mahalanobis_distance(case: Case, data: Data) -> None:
    """A small gap along a direction of tiny variance is fully decodable: measure it in that direction's deviation."""
    eraser, used = case.on(data), Used(data)
    if not case.complete:
        return
    rows = eraser(used.x)
    values, vectors = used.directions(rows, 1e-13)
    distance = ((vectors.mT @ (used.gaps(rows) / used.unit[:, None])) / values.sqrt()[:, None]).norm(dim=0)
    assert distance.max() <= 1e-7, f"{float(distance.max()):.1e}"


def no_other_map_is_nearer(case: Case, data: Data) -> None:
    """The gradient of the mean squared change vanishes along every direction that keeps the guarantee."""
    eraser, used = case.on(data, data.x.double()), Used(data)
    if not case.optimal:
        return
    moment = used.covariance(used.x)
    if not case.affine:
        mean = used.mean(used.x)
        moment = moment + torch.outer(mean, mean)
    # The rows of the gradient may be scaled at will, its columns with those of the gaps: Q gaps = 0 is feasible.
    left, right, moment = eraser.left / used.unit[:, None], eraser.right, moment / used.unit
    gradient, computed = left @ (right @ moment), 2.0**-48 * (left.abs() @ (right.abs() @ moment.abs())).norm()
    gaps = used.gaps(used.x) / used.unit[:, None]
    fixed = torch.linalg.svd(gaps / gaps.norm(dim=0).clamp_min(1e-300), full_matrices=False)[0][:, : eraser.rank]
    free = (gradient - (gradient @ fixed) @ fixed.mT)[:, ~used.constant]  # a constant column is left alone
    assert free.norm() < ZERO * gradient.norm() + computed, f"{float(free.norm() / gradient.norm()):.1e}"


def rescaled_rows_get_the_rescaled_eraser(case: Case, data: Data) -> None:
    if not case.rescales:
        return
    eraser, used = case.on(data, data.x.double()), Used(data)
    generator = torch.Generator().manual_seed(0)
    for total in (-66, 0, 66):  # 1e-20, 1, 1e20
        scale = 2.0 ** (torch.randint(-9, 9, (data.dim,), generator=generator) + total).double()
        other = case.on(data, data.x.double() * scale)
        # Scaling by powers of two is exact: so must be all that follows from it.
        difference = (other(used.x * scale) / scale - eraser(used.x)).abs()
        assert (difference <= rounding(eraser, used.x)).all(), f"{float((difference / used.scale).max()):.1e}"


def rotated_rows_get_the_rotated_eraser(case: Case, data: Data) -> None:
    if not case.rotates:
        return
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(data.dim, data.dim, generator=generator, dtype=torch.float64))[0]
    used = Used(data)
    # About the mean, and in units of the deviations: rotating mixes the columns, and with them their rounding.
    x = torch.zeros_like(data.x, dtype=torch.float64)
    x[used.keep] = used.x / used.scale
    other, eraser = case.on(data, x @ rotation), case.on(data, x)
    if eraser.report and eraser.report.ridge > 1e-6 * eraser.report.smallest_eigenvalue:
        return  # along a null direction the ridge decides, and that is of the columns as they are
    rows = x[used.keep]
    difference = (other(rows @ rotation) @ rotation.mT - eraser(rows)).abs().max()
    assert difference <= 1e-6 * rows.abs().max(), f"{float(difference):.1e}"


ERASER_LAWS = [
    concept_is_gone,
    mean_is_kept,
    erasing_twice_is_erasing_once,
    rank_is_that_of_the_concept,
    no_linear_classifier_can_tell,
    nothing_is_left_in_mahalanobis_distance,
    no_other_map_is_nearer,
    rescaled_rows_get_the_rescaled_eraser,
    rotated_rows_get_the_rotated_eraser,
]
