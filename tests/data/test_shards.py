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


FLOATS = {name: X.to(getattr(torch, name)) for name in ("float64", "float32", "float16", "bfloat16")}


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_of_16_32_and_64_bits_are_read(tmp_path, dtype):
    save_file({"x": FLOATS[dtype], "y": Y}, tmp_path / "a.safetensors")
    x, _ = next(iter(Shards(tmp_path / "a.safetensors")))
    assert torch.equal(x, FLOATS[dtype])


@pytest.mark.parametrize("kind", ["npz", "npy"])
@pytest.mark.parametrize("dtype", [">f8", ">f4", ">f2", "<f4"])
def test_foreign_orders_of_bytes_and_of_columns(tmp_path, kind, dtype):
    path, x = write_shard(tmp_path, kind), X.numpy().astype(dtype)
    y, groups = Y.numpy().astype(">i4"), (np.arange(40) // 8).astype(">u2")
    for array in (np.asfortranarray(x), x[::-1, ::-1][::-1, ::-1], np.ascontiguousarray(x)):
        if kind == "npz":
            np.savez(path, x=array, y=y, groups=groups)
        else:
            np.save(path, array)
            np.save(path.with_name("s.y.npy"), y)
            np.save(path.with_name("s.groups.npy"), groups)
        ((got, labels, of),) = Shards(path).chunks()
        assert of is not None and torch.equal(got, torch.from_numpy(x.astype(x.dtype.newbyteorder("="))))
        assert torch.equal(labels, Y) and torch.equal(of, torch.arange(40) // 8) and got.is_contiguous()


EIGHT = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "uint8", "int8", "bool", "int64")


@pytest.mark.parametrize("dtype", EIGHT)
def test_rows_that_are_no_floating_point_numbers_of_16_bits_or_more(tmp_path, dtype):
    save_file({"x": X.abs().to(getattr(torch, dtype)), "y": Y}, tmp_path / "eight.safetensors")
    with pytest.raises(
        ValueError, match="x of .*eight.safetensors holds .*, expected floating-point numbers of 16, 32"
    ):
        Shards(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        *[X.numpy().astype("c8"), X.numpy().astype("g"), X.numpy().astype("S4"), X.numpy().astype("U4")],
        *[X.numpy().astype("M8[s]"), X.numpy().view("V4"), X.numpy().astype("f4").view([("a", "f4")])],
        *[np.float32(1), X.numpy()[0], X.numpy()[None], X.numpy()[:, :0], X.numpy()[:, 0]],
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_arrays_that_are_no_rows_are_named(tmp_path, kind, array):
    path = write_shard(tmp_path, kind)
    np.save(path, array) if kind == "npy" else np.savez(path, x=array, y=Y.numpy())
    with pytest.raises(ValueError, match=f"x of .*{path.name} (holds|has shape)"):
        Shards(path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("name", ["y", "groups"])
def test_labels_and_groups_in_floating_point_are_named(tmp_path, name, dtype):
    tensors = {"x": X, "y": Y, "groups": Y, name: Y.float().to(getattr(torch, dtype))}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"{name} of .*a.safetensors holds torch.{dtype}, expected"):
        Shards(tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "uint16", "uint32"])
def test_labels_of_any_integers_are_the_same_classes(tmp_path, dtype):
    save_file({"x": X, "y": Y.to(getattr(torch, dtype))}, tmp_path / "a.safetensors")
    shards = Shards(tmp_path)
    assert shards.class_names == ("0", "1", "2") and torch.equal(next(iter(shards))[1], Y)


def test_negative_labels_are_classes_but_for_the_one_that_leaves_out(tmp_path):
    y = np.array([-1, 1, -100, -1, 1], np.int8)
    np.savez(tmp_path / "a.npz", x=X[:5].numpy(), y=y)
    shards = Shards(tmp_path)
    assert shards.class_names == ("-1", "1") and next(iter(shards))[1].tolist() == [0, 1, -100, 0, 1]


@pytest.mark.parametrize(
    ("one", "other"), [([True, False], [0, 1]), ([0, 1], ["0", "1"]), (["a", "b"], [True, False]), ([1, 2], [True] * 2)]
)
def test_labels_of_other_kinds_in_other_shards(tmp_path, one, other):
    for name, y in (("0", one), ("1", other)):
        np.savez(tmp_path / f"{name}.npz", x=X[:2].numpy(), y=np.array(y))
    with pytest.raises(ValueError, match="labels are .* in .*0.npz and .* in .*1.npz, expected the same kind in all"):
        Shards(tmp_path)


def test_what_archives_and_systems_leave_in_a_folder_is_no_shard(tmp_path):
    write_shard(tmp_path, "npz")
    for name in ("._s.npz", "._t.safetensors", ".DS_Store", "._x.npy", ".hidden.npz"):
        (tmp_path / name).write_bytes(b"\0\5\26\7Mac OS X")
    for name in ("folder.npz", "__MACOSX"):
        (tmp_path / name).mkdir()
    (tmp_path / "__MACOSX" / "._s.npz").write_bytes(b"\0\5\26\7")
    assert [path.name for path in Shards(tmp_path).files] == ["s.npz"]


def test_shards_without_rows(tmp_path):
    write_shard(tmp_path / "s", "npz")
    np.savez(tmp_path / "s" / "0.npz", x=X[:0].numpy(), y=Y[:0].numpy())
    shards = Shards(tmp_path / "s")
    assert shards.rows == 40 and torch.equal(torch.cat([x for x, _ in shards]), X)
    with pytest.raises(ValueError, match="holds no labels"):
        Shards(tmp_path / "s" / "0.npz")
