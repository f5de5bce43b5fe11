"""Class sums by group: as defined, however the stream is cut, merged and removed; and what is refused."""

from __future__ import annotations

from pathlib import Path

import cases
import pytest
import torch
from cases import PRECISIONS, Precision

from leace_fast import Moments
from leace_fast._files import load_tensors, save_tensors

ROWS, DIM, CLASSES, GROUPS = 3000, 6, 3, 40


def rows(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Return labelled rows of groups of very different sizes, whose numbers are far apart."""
    generator = torch.Generator().manual_seed(0)
    x = cases.correlated(ROWS, DIM, generator, condition=100.0).add(50).to(dtype)
    y = torch.randint(CLASSES, (ROWS,), generator=generator)
    y[::13] = -100
    groups = (torch.rand(ROWS, generator=generator).square() * GROUPS).long() * 12_345_678
    return {"x": x, "y": y, "groups": groups}


def moments_of(rows: dict[str, torch.Tensor], where: torch.Tensor | slice = slice(None)) -> Moments:
    return Moments(DIM, CLASSES).update(**{name: part[where] for name, part in rows.items()})


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_cells_are_as_defined(precision: Precision, weighted: bool) -> None:
    given = rows(precision.dtype)
    weight = torch.rand(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    moments = Moments(DIM, CLASSES).update(**given, weight=weight)
    cells = moments.cells
    assert cells is not None
    used = given["y"] != -100
    found = set(zip(cells.groups.tolist(), cells.classes.tolist(), strict=True))
    assert found == set(zip(given["groups"][used].tolist(), given["y"][used].tolist(), strict=True))
    w = torch.ones(ROWS, dtype=torch.float64) if weight is None else weight
    origin = None
    for i, (group, label) in enumerate(zip(cells.groups.tolist(), cells.classes.tolist(), strict=True)):
        member = (given["groups"] == group) & (given["y"] == label)
        assert int(cells.counts[i]) == int(member.sum())
        assert float(cells.weights[i]) == pytest.approx(float(w[member].sum()), rel=1e-13)
        mean = w[member] @ given["x"][member].double() / w[member].sum()
        origin = mean - cells.means[i] if origin is None else origin
        assert ((mean - cells.means[i]) - origin).abs().max() < 1e-12 * 50
    shares = torch.stack([w[used & (given["groups"] == g)].sum() for g in given["groups"][used].unique().tolist()])
    assert moments.num_groups == len(shares)
    assert moments.effective_groups == pytest.approx(float(shares.sum() ** 2 / shares.square().sum()))


def test_groups_change_no_bit_of_the_rest() -> None:
    given = rows(torch.float32)
    with_groups, without = moments_of(given), Moments(DIM, CLASSES).update(given["x"], given["y"])
    assert torch.equal(with_groups.covariance, without.covariance)
    assert torch.equal(with_groups.class_means, without.class_means)
    assert without.cells is None and without.num_groups == 0 and without.effective_groups == 0


def test_a_file_keeps_groups(tmp_path: Path) -> None:
    moments = moments_of(rows())
    moments.save(tmp_path / "m.safetensors")
    loaded = Moments.load(tmp_path / "m.safetensors")
    assert loaded.cells is not None and moments.cells is not None
    assert torch.equal(loaded.cells.means, moments.cells.means) and loaded.num_groups == moments.num_groups


def test_shards_cut_anywhere_give_the_same_cells() -> None:
    given = rows()
    whole = moments_of(given)
    shards = [moments_of(given, slice(begin, begin + 700)) for begin in range(0, ROWS, 700)]
    merged = shards[0].copy()
    for shard in shards[1:]:
        merged.merge(shard)
    assert merged.cells is not None and whole.cells is not None
    assert torch.equal(merged.cells.counts, whole.cells.counts)
    assert (
        (merged.cells.means - merged.cells.means[0]) - (whole.cells.means - whole.cells.means[0])
    ).abs().max() < 1e-12
    left = merged.remove(shards[1])
    wanted = [i for i in range(ROWS) if not 700 <= i < 1400]
    other = moments_of(given, torch.tensor(wanted))
    assert left.num_groups == other.num_groups
    assert left.cells is not None and other.cells is not None
    assert torch.equal(left.cells.counts, other.cells.counts)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (torch.zeros(4), TypeError, "groups has dtype torch.float32, expected integers"),
        (torch.zeros(4, dtype=torch.bool), TypeError, "groups has dtype torch.bool"),
        (torch.zeros(3, dtype=torch.long), ValueError, r"groups has shape \(3,\), expected \(4,\)"),
        (torch.tensor([0, 1, -1, 2]), ValueError, "groups holds -1, expected integers from 0"),
        (torch.tensor([0, 1, 2**41, 2]), ValueError, "groups holds 2199023255552, expected"),
    ],
)
def test_what_are_no_groups(groups: torch.Tensor, error: type[Exception], message: str) -> None:
    moments = Moments(2, 2)
    with pytest.raises(error, match=message):
        moments.update(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), groups=groups)
    assert not moments.count and moments.cells is None


def test_groups_in_every_call_or_in_none() -> None:
    given = rows()
    grouped, plain = moments_of(given), Moments(DIM, CLASSES).update(given["x"], given["y"])
    for one, call in (
        (grouped, lambda: grouped.update(given["x"], given["y"])),
        (plain, lambda: plain.update(**given)),
        (grouped, lambda: grouped.merge(plain)),
        (plain, lambda: plain.merge(grouped)),
        (grouped, lambda: grouped.remove(plain)),
    ):
        before = one.count, one.num_groups
        with pytest.raises(ValueError, match="groups"):
            call()
        assert (one.count, one.num_groups) == before
    with pytest.raises(ValueError, match="groups= needs classes"):
        Moments(DIM, target_dim=1).update(given["x"], given["x"][:, :1], groups=given["groups"])
    assert grouped.merge(Moments(DIM, CLASSES)).num_groups == Moments(DIM, CLASSES).merge(grouped).num_groups


def test_rows_left_out_have_no_group() -> None:
    x, y = torch.randn(6, 2), torch.tensor([0, 1, -100, 0, 1, 0])
    x[3] = float("nan")
    moments = Moments(2, 2, nonfinite="skip").update(
        x, y, mask=torch.tensor([1, 1, 1, 1, 0, 1]), groups=torch.arange(6), weight=torch.tensor([1.0, 1, 1, 1, 1, 0])
    )
    assert moments.cells is not None and moments.cells.groups.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["y", "weight"])
def test_expanded_labels_and_weights_are_read_where_they_lie(name: str) -> None:
    """A kernel that took an expanded tensor for one block of memory read far past its end."""
    x = torch.randn(200_000, 3)
    parts = {"y": torch.arange(len(x)) % 2, "weight": torch.rand(len(x), dtype=torch.float64)}
    parts[name] = parts[name][1].expand(len(x))
    whole = {key: part.contiguous() for key, part in parts.items()}
    found, wanted = Moments(3, 2).update(x, **parts), Moments(3, 2).update(x, **whole)
    assert torch.equal(found.class_counts, wanted.class_counts) and torch.equal(found.covariance, wanted.covariance)


def test_moments_of_x_alone_take_no_labels() -> None:
    moments = Moments(3).update(torch.randn(5, 3))
    assert (moments.num_classes, moments.target_dim, moments.count) == (None, None, 5)
    with pytest.raises(ValueError, match="these moments hold no labels, but y was given"):
        moments.update(torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(TypeError, match="y is missing"):
        Moments(3, 2).update(torch.randn(5, 3))
    with pytest.raises(ValueError, match="needs classes: these moments hold no labels"):
        _ = moments.class_means
    assert moments.count == 5


def test_pooled_are_the_rows_without_labels() -> None:
    given = rows()
    moments = Moments(DIM, CLASSES, per_class=True).update(**given)
    pooled, alone = moments.pooled(), Moments(DIM).update(given["x"], mask=given["y"] != -100)
    assert pooled.count == moments.count == alone.count
    assert (pooled.covariance - alone.covariance).abs().max() < 1e-12 and (pooled.mean - alone.mean).abs().max() < 1e-12
    pooled.update(given["x"])
    assert moments.count == alone.count, "nothing is shared"


@pytest.mark.parametrize(
    "changed",
    [
        {"group_keys": lambda keys: keys - 100},
        {"group_sums": lambda sums: sums * float("nan")},
        {"group_weights": lambda weights: weights * 0},
        {"group_counts": lambda counts: -counts},
        {"group_sums": lambda sums: sums[:, :3], "group_shift": lambda shift: shift[:3]},
        {f"group_{name}": lambda part: part[:3] for name in ("keys", "counts", "weights", "sums")},
        {"group_keys": lambda keys: keys[0]},
    ],
    ids=["keys", "sums", "weights", "counts", "width", "rows", "axes"],
)
def test_a_file_whose_groups_are_of_other_rows_is_refused(changed: dict, tmp_path: Path) -> None:
    moments_of(rows()).save(tmp_path / "whole")
    tensors, header = load_tensors(tmp_path / "whole", "moments")
    parts = {name: changed.get(name, torch.clone)(part).contiguous() for name, part in tensors.items()}
    kept = {name: value for name, value in header.items() if name not in ("format_version", "kind")}
    save_tensors(tmp_path / "edited", "moments", parts, kept)
    with pytest.raises(ValueError, match="holds no moments that can be read: the class sums of its groups"):
        Moments.load(tmp_path / "edited")


def test_groups_times_classes_stay_in_their_range() -> None:
    """A group of a large number in so many classes would be taken for another."""
    x, y = torch.zeros(2, 1), torch.tensor([2**24 - 1, 0])
    with pytest.raises(ValueError, match="groups holds 1099511627775, expected integers from 0 to 549755813887"):
        Moments(1, 2**24).update(x, y, groups=torch.tensor([2**40 - 1, 0]))
