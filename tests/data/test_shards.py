"""Activation shards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from leace_fast.data import Shards
from leace_fast.data._shards import CHUNK

X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def write_shard(folder, kind, x=X, y=Y):
    folder.mkdir(exist_ok=True)
    if kind == "safetensors":
        save_file({"x": x, "y": y}, folder / "s.safetensors")
        return folder / "s.safetensors"
    if kind == "npz":
        np.savez(folder / "s.npz", x=x.numpy(), y=np.asarray(y))
        return folder / "s.npz"
    np.save(folder / "s.x.npy", x.numpy())
    np.save(folder / "s.y.npy", np.asarray(y))
    return folder / "s.x.npy"


@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
@pytest.mark.parametrize("folder", [True, False])
def test_shards_round_trip(tmp_path, kind, folder):
    path = write_shard(tmp_path / "shards", kind)
    shards = Shards(path.parent if folder else path)
    assert (shards.dim, shards.rows, shards.class_names, len(shards)) == (6, 40, ("0", "1", "2"), 1)
    x, y = (torch.cat(part) for part in zip(*shards, strict=True))
    assert torch.equal(x, X) and torch.equal(y, Y)


def test_shards_of_several_files_and_chunks_agree_on_classes(tmp_path):
    rows = CHUNK + 5
    write_shard(tmp_path / "s", "npz", torch.zeros(rows, 2), torch.full((rows,), 9))
    write_shard(tmp_path / "s", "npy", torch.ones(3, 2), torch.tensor([4, -100, 9]))
    write_shard(tmp_path / "s", "safetensors", torch.ones(2, 2).bfloat16(), torch.tensor([5, 5]))
    shards = Shards(tmp_path / "s")
    assert shards.class_names == ("4", "5", "9")
    chunks = list(shards)
    assert len(shards) == len(chunks) == 4
    labels = torch.cat([y for _, y in chunks])
    assert torch.bincount(labels[labels >= 0]).tolist() == [1, 2, rows + 1] and int((labels == -100).sum()) == 1


def test_string_labels_keep_their_names(tmp_path):
    np.savez(tmp_path / "a.npz", x=X.numpy(), y=np.array(["no", "yes"] * 20))
    shards = Shards(tmp_path / "a.npz")
    assert shards.class_names == ("no", "yes")
    assert next(iter(shards))[1][:3].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y.float(), "expected classes"),
        (X, Y[:5], r"shape \(5,\), expected \(40,\)"),
        (X[0], Y, r"shape \(6,\), expected \(rows, dim\)"),
        (X.long(), Y, "expected floating-point"),
        (X, torch.zeros(40, dtype=torch.int64), "only the class 0"),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
def test_shards_that_do_not_fit(tmp_path, kind, x, y, message):
    with pytest.raises(ValueError, match=message):
        Shards(write_shard(tmp_path, kind, x, y))


def test_shards_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        Shards(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no activation shards"):
        Shards(tmp_path)
    for name in ("a.safetensors", "b.npz", "c.x.npy"):
        (tmp_path / name).write_bytes(b"damaged")
        np.save(tmp_path / "c.y.npy", Y.numpy())
        with pytest.raises(ValueError, match="cannot be read"):
            Shards(tmp_path / name)
    save_file({"x": X, "labels": Y}, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match="holds labels, x but no y"):
        Shards(tmp_path / "d.safetensors")
    np.save(tmp_path / "plain.npy", X.numpy())
    with pytest.raises(ValueError, match="says neither"):
        Shards(tmp_path / "plain.npy")
    np.save(tmp_path / "x.npy", X.numpy())
    with pytest.raises(FileNotFoundError, match="no labels beside it"):
        Shards(tmp_path / "x.npy")
    np.save(tmp_path / "pickled.x.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "pickled.y.npy", Y.numpy())
    with pytest.raises(ValueError, match="cannot be read"):
        Shards(tmp_path / "pickled.x.npy")


def test_shards_of_different_widths(tmp_path):
    write_shard(tmp_path, "npz")
    write_shard(tmp_path, "npy", torch.ones(4, 5), torch.arange(4))
    with pytest.raises(ValueError, match="width 5, expected 6|width 6, expected 5"):
        Shards(tmp_path)


GROUPS = {"numbers": np.arange(40) // 8 * 3 + 2, "names": np.array([f"by {i // 8}" for i in range(40)])}


def write_grouped(folder, kind, groups, x=X, y=Y):
    """A shard with groups: safetensors hold numbers only."""
    path = write_shard(folder, kind, x, y)
    if kind == "safetensors":
        save_file({"x": x, "y": y, "groups": torch.from_numpy(groups)}, path)
    elif kind == "npz":
        np.savez(path, x=x.numpy(), y=np.asarray(y), groups=groups)
    else:
        np.save(folder / "s.groups.npy", groups)
    return path


@pytest.mark.parametrize(
    ("kind", "groups"), [("safetensors", "numbers"), ("npz", "numbers"), ("npz", "names"), ("npy", "names")]
)
@pytest.mark.parametrize("folder", [True, False])
def test_groups_of_shards_are_numbered_in_sorted_order(tmp_path, kind, groups, folder):
    path = write_grouped(tmp_path / "s", kind, GROUPS[groups])
    shards = Shards(path.parent if folder else path)
    assert len(shards.files) == 1 and shards.group_names == tuple(map(str, dict.fromkeys(GROUPS[groups].tolist())))
    x, y, of = (torch.cat(part) for part in zip(*shards.chunks(), strict=True))  # type: ignore[arg-type]
    assert torch.equal(x, X) and torch.equal(y, Y) and torch.equal(of, torch.arange(40) // 8)


def test_groups_are_the_same_in_all_shards(tmp_path):
    np.savez(tmp_path / "0.npz", x=X[:4].numpy(), y=Y[:4], groups=["bob", "ann", "bob", "dan"])
    np.savez(tmp_path / "1.npz", x=X[:2].numpy(), y=Y[:2], groups=["dan", "cat"])
    shards = Shards(tmp_path)
    assert shards.group_names == ("ann", "bob", "cat", "dan")
    assert [of.tolist() for _, _, of in shards.chunks() if of is not None] == [[1, 0, 1, 3], [3, 2]]
    assert [of for _, _, of in Shards(write_shard(tmp_path / "without", "npz")).chunks()] == [None]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.zeros(40), "groups of .* holds float64, expected integers or strings"),
        (np.zeros(5, np.int64), r"groups of .* shape \(5,\), expected \(40,\): one group for each row"),
        (np.array(["ann", ""] * 20), "groups of .* are empty for some rows, expected the group of each"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_groups_that_do_not_fit(tmp_path, kind, groups, message):
    with pytest.raises(ValueError, match=message):
        Shards(write_grouped(tmp_path, kind, groups))


def test_groups_in_some_shards_only(tmp_path):
    np.savez(tmp_path / "0.npz", x=X.numpy(), y=Y, groups=GROUPS["names"])
    np.savez(tmp_path / "1.npz", x=X.numpy(), y=Y)
    with pytest.raises(ValueError, match="0.npz holds groups and .*1.npz none, expected them in all shards or in none"):
        Shards(tmp_path)
    np.savez(tmp_path / "1.npz", x=X.numpy(), y=Y, groups=GROUPS["numbers"])
    with pytest.raises(ValueError, match="strings in some shards and numbers in others"):
        Shards(tmp_path)
