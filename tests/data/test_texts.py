"""Texts with labels, windows, batches, and activation shards."""

from __future__ import annotations

import gzip
import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from leace_fast.data import Shards, Texts, Window, batched, read_texts, split_texts, text_windows
from leace_fast.data._classes import as_classes
from leace_fast.data._shards import CHUNK
from leace_fast.demo._language_model import train_tokenizer

ROWS = [{"text": f"text number {i}", "label": "odd" if i % 2 else "even", "id": i} for i in range(20)]


def write_lines(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


WRITERS = {"a.jsonl": write_lines, "a.jsonl.gz": write_lines, "a.parquet": write_parquet}


@pytest.mark.parametrize("name", WRITERS)
def test_reads_texts_and_names_of_classes(tmp_path, name):
    data = read_texts(WRITERS[name](tmp_path / name, ROWS))
    assert data.class_names == {"label": ("even", "odd")}
    assert data.texts[:2] == ["text number 0", "text number 1"]
    assert data.labels == [(0,), (1,)] * 10


@pytest.mark.parametrize("name", WRITERS)
def test_reads_several_columns_of_labels(tmp_path, name):
    rows = [
        {**row, "third": [None, 5, 7][row["id"] % 3], "label": "" if row["id"] < 2 else row["label"]} for row in ROWS
    ]
    data = read_texts(WRITERS[name](tmp_path / name, rows), label=["third", "label"])
    assert data.class_names == {"third": ("5", "7"), "label": ("even", "odd")}
    assert data.texts == [row["text"] for row in rows[1:]], "the first has no label at all"
    assert data.labels == [((-100, 0, 1)[i % 3], -100 if i < 2 else i % 2) for i in range(1, 20)]


@pytest.mark.parametrize("columns", [[], ["label", "label"]])
def test_columns_of_labels_are_named_once(tmp_path, columns):
    with pytest.raises(ValueError, match="expected one or several, each once"):
        read_texts(write_lines(tmp_path / "a.jsonl", ROWS), label=columns)


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [([3, 7, 3], ("3", "7"), [0, 1, 0]), ([True, False], ("False", "True"), [1, 0]), (["b", "a"], ("a", "b"), [1, 0])],
)
def test_classes_are_numbered_in_sorted_order(values, names, labels):
    assert as_classes(values, "column") == (labels, names)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.5], "0.5 .float., expected classes"),
        ([["a"], ["b"]], "list"),
        ([1, "a"], "mixes int and str"),
        (["a", "a"], "only the class 'a'"),
        ([], "no labels"),
        (list(range(2000)), "2000 distinct values"),
    ],
)
def test_labels_that_are_no_classes(values, message):
    with pytest.raises(ValueError, match=message):
        as_classes(values, "column 'label'")


def test_rows_without_text_or_label_are_left_out(tmp_path):
    rows = [*ROWS[:4], {"text": "", "label": "odd"}, {"text": "x", "label": None}]
    assert len(read_texts(write_lines(tmp_path / "a.jsonl", rows)).texts) == 4


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("missing", ["text", "label"])
@pytest.mark.parametrize("columns", ["nope", ["id", "nope"]])
def test_a_missing_column_is_named_with_those_present(tmp_path, name, missing, columns):
    path = WRITERS[name](tmp_path / name, ROWS)
    with pytest.raises(
        ValueError, match=f"no column 'nope'; its columns: 'text', 'label', 'id'; name one with --{missing}"
    ):
        read_texts(path, **{missing: columns if missing == "label" else "nope"})


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.jsonl", None, FileNotFoundError, "no file"),
        ("a.csv", b"text,label", ValueError, "unknown kind"),
        ("a.jsonl", b'{"text": 1', ValueError, "line 1 of .* is no JSON"),
        ("a.jsonl", b"[1]\n", ValueError, "line 1 of .* is no object"),
        (
            "a.jsonl",
            b'{"text": 1, "label": 0}\n{"text": 2, "label": 1}',
            ValueError,
            "'text' .* holds 1, expected strings",
        ),
        ("a.jsonl", b"\xff\xfe", ValueError, "UTF-8"),
        ("a.jsonl", b"", ValueError, "no labels"),
        ("a.jsonl.gz", b"not gzip", ValueError, "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99)[:12] + b"damaged", ValueError, "cannot be read"),
        ("a.parquet", b"not parquet", ValueError, "cannot be read"),
        ("a.txt", b"one\n", ValueError, "no column 'label'; its columns: 'text'; name one with --label"),
    ],
)
def test_unreadable_texts(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_texts(tmp_path / name)


def test_split_keeps_classes_and_copies_apart():
    texts = [f"t{i % 30}" for i in range(60)]
    data = Texts(texts, [(int(text[1:]) % 3,) for text in texts], {"kind": ("a", "b", "c")})
    fit, test = split_texts(data)
    assert not set(fit.texts) & set(test.texts)
    assert sorted(fit.texts + test.texts) == sorted(texts)
    assert torch.bincount(torch.tensor(test.labels)[:, 0]).tolist() == [6, 6, 6]
    shuffled = Texts(texts[::-1], data.labels[::-1], data.class_names)
    assert set(split_texts(shuffled)[1].texts) == set(test.texts)


def test_what_one_concept_holds_out_is_held_out_for_all():
    texts = [f"t{i}" for i in range(200)]
    labels = [(i % 2, -100 if i % 5 == 0 else i % 3) for i in range(200)]
    names = {"two": ("a", "b"), "three": ("x", "y", "z")}
    fit, test = split_texts(Texts(texts, labels, names))
    assert sorted(fit.texts + test.texts) == sorted(texts) and dict(
        zip(fit.texts + test.texts, fit.labels + test.labels, strict=True)
    ) == dict(zip(texts, labels, strict=True))
    alone = set()
    for place, name in enumerate(names):
        kept = [i for i in range(200) if labels[i][place] >= 0]
        one = Texts([texts[i] for i in kept], [(labels[i][place],) for i in kept], {name: names[name]})
        alone |= set(split_texts(one)[1].texts)
    assert set(test.texts) == alone and len(alone) < 80


def test_split_needs_two_texts_of_each_class():
    with pytest.raises(ValueError, match="class 'b' of 'kind' has 1 distinct text"):
        split_texts(Texts(["x", "y", "z", "z"], [(0,), (0,), (1,), (1,)], {"kind": ("a", "b")}))
    first, second, *others = sorted("wxyz", key=lambda text: hashlib.sha256(text.encode()).digest())
    labels = [(0, 1), (0, 1), (-100, 1), (-100, 1), (1, 0), (1, 0)]
    shared = Texts([first, second, *others, "u", "v"], labels, {"kind": ("a", "b"), "size": ("c", "d")})
    with pytest.raises(ValueError, match="all texts of 'a' of 'kind' also bear other labels, for which they are held"):
        split_texts(shared, 0.6)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([row["text"] for row in ROWS] * 3, 300)


@pytest.mark.parametrize("start", [True, False])
def test_each_token_is_scored_once(tokenizer, start):
    data = Texts(
        [row["text"] * (1 + row["id"]) for row in ROWS], [(row["id"] % 2,) for row in ROWS], {"label": ("even", "odd")}
    )
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    try:
        if not start:
            tokenizer.bos_token = tokenizer.eos_token = None
        windows, text_bytes = text_windows(data, tokenizer, 16)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in data.texts]
        first = [] if start else [tokenizer.decode(tokens[:1]) for tokens in ids]
    finally:
        tokenizer.bos_token, tokenizer.eos_token = bos, eos
    scored = torch.cat([window.input_ids[-window.scored :] for window in windows])
    assert scored.tolist() == [i for tokens in ids for i in (tokens if start else tokens[1:])]
    assert text_bytes == sum(map(len, data.texts)) - sum(map(len, first))
    assert max(len(window.input_ids) for window in windows) <= 16


def test_whole_texts_are_taken_up_to_max_tokens(tokenizer):
    data = Texts([row["text"] for row in ROWS], [(row["id"] % 2,) for row in ROWS], {"label": ("even", "odd")})
    sizes = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in data.texts]
    windows, text_bytes = text_windows(data, tokenizer, 64, max_tokens=sum(sizes[:3]) + 1)
    assert len(windows) == 3
    assert text_bytes == sum(len(text) for text in data.texts[:3])
    assert len(text_windows(data, tokenizer, 64, max_tokens=1)[0]) == 1


def test_batches_hold_every_scored_token_once():
    windows = [Window(torch.arange(1, n + 1), n - 1, torch.full((n,), n % 3)) for n in (5, 9, 2, 7)]
    batches = list(batched(windows, 2, token=0))
    assert [batch["input_ids"].shape for batch in batches] == [(2, 9), (2, 5)]
    assert sum(int((batch["labels"] != -100).sum()) for batch in batches) == 4 + 8 + 1 + 6
    for batch in batches:
        kept = batch["labels"] != -100
        assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
        assert torch.equal(kept, batch["concept_labels"] != -100)
        assert torch.equal(batch["attention_mask"].bool(), batch["input_ids"] != 0)


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
