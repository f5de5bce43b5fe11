"""Texts with labels, read from files and split."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest
import torch

from leace_fast.data import Texts, read_texts, split_texts
from leace_fast.data._classes import as_classes
from leace_fast.data._texts import numbered

ROWS = [{"text": f"text number {i}", "label": "odd" if i % 2 else "even", "id": i} for i in range(20)]


def write_lines(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
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
        ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:12] + b"damaged", ValueError, "cannot be read"),
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


AUTHORS = [{**row, "author": f"author {row['id'] % 7}", "number": row["id"] % 7} for row in ROWS]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("column", ["author", "number"])
def test_reads_a_column_of_groups(tmp_path, name, column):
    data = read_texts(WRITERS[name](tmp_path / name, AUTHORS), groups=column)
    assert [data.group_names[group] for group in data.groups] == [str(row[column]) for row in AUTHORS]
    assert len(data.group_names) == 7
    shuffled = read_texts(WRITERS[name](tmp_path / f"b{name[1:]}", AUTHORS[::-1]), groups=column)
    assert shuffled.groups == data.groups[::-1], "their numbers do not hang on the order of the rows"
    assert data.labels == [(0,), (1,)] * 10


def test_without_a_column_each_distinct_text_is_a_group(tmp_path):
    data = read_texts(write_lines(tmp_path / "a.jsonl", [*ROWS[:3], ROWS[1]]))
    assert [data.group_names[group] for group in data.groups] == data.texts and len(data.group_names) == 3


@pytest.mark.parametrize("name", [*WRITERS, "a.txt"])
def test_texts_without_labels(tmp_path, name):
    path = tmp_path / name
    if name == "a.txt":
        path.write_text("".join(row["text"] + "\n" for row in ROWS) + "\n")
    else:
        WRITERS[name](path, [{"text": row["text"]} for row in ROWS])
    data = read_texts(path, label=None)
    assert data.texts == [row["text"] for row in ROWS] and set(data.labels) == {()} and not data.class_names


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_column_of_groups_is_named_with_those_present(tmp_path, name):
    path = WRITERS[name](tmp_path / name, ROWS)
    columns = "its columns: 'text', 'label', 'id'; name one with --groups"
    with pytest.raises(ValueError, match=f"no column 'by'; {columns}"):
        read_texts(path, groups="by")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "column 'author' of .* is empty in 1 of 20 rows, expected the group of each"),
        ("", "column 'author' of .* is empty in 1 of 20 rows"),
        (["a"], "column 'author' of .* holds .'a'. .list., expected groups: strings or integers"),
        (0.5, "holds 0.5 .float., expected groups"),
    ],
)
def test_groups_that_are_none(tmp_path, value, message):
    rows = [*AUTHORS[:-1], {**AUTHORS[-1], "author": value}]
    with pytest.raises(ValueError, match=message):
        read_texts(write_lines(tmp_path / "a.jsonl", rows), groups="author")
    unlabelled = [*AUTHORS, {**AUTHORS[-1], "author": value, "label": None}]
    assert len(read_texts(write_lines(tmp_path / "a.jsonl", unlabelled), groups="author").texts) == 20


def grouped(texts, labels, names, class_names=None):
    return numbered(Texts(texts, labels, class_names or {"kind": ("a", "b")}), names)


def test_a_group_is_wholly_fitted_or_wholly_held_out():
    data = grouped(
        [f"t{i}" for i in range(200)], [(i % 2,) for i in range(200)], [f"g{i // 2 % 23}" for i in range(200)]
    )
    fit, test = split_texts(data)
    assert not set(fit.groups) & set(test.groups) and sorted(fit.texts + test.texts) == sorted(data.texts)
    assert len(set(test.groups)) == 7, "30 % of 23"
    of = dict(zip(data.texts, data.groups, strict=True))
    for part in (fit, test):
        assert list(part.groups) == [of[text] for text in part.texts] and part.group_names == data.group_names
    places = [*range(0, 200, 2), *range(199, 0, -2)]
    texts, labels = [data.texts[i] for i in places], [data.labels[i] for i in places]
    shuffled = grouped(texts, labels, [f"g{i // 2 % 23}" for i in places])
    assert set(split_texts(shuffled)[1].texts) == set(test.texts)


def test_groups_of_their_own_are_split_as_texts_are():
    texts = [f"t{i % 30}" for i in range(60)]
    data = Texts(texts, [(int(text[1:]) % 3,) for text in texts], {"kind": ("a", "b", "c")})
    assert split_texts(numbered(data, texts)) == split_texts(data)


def test_a_text_in_groups_of_both_parts_is_fitted_and_not_held_out():
    texts = [f"t{i}" for i in range(40)] + ["hello"] * 10
    data = grouped(texts, [(i % 2,) for i in range(50)], [f"g{i % 10}" for i in range(50)])
    fit, test = split_texts(data)
    assert set(fit.texts).isdisjoint(test.texts) and "hello" in fit.texts
    assert len(test.texts) == 4 * 4, "of each group held out all but its copy"
    assert set(test.groups).isdisjoint(fit.groups)


def test_groups_that_cannot_be_split():
    one = grouped(["x", "y", "z", "w"], [(0,), (0,), (1,), (1,)], ["ann"] * 4)
    with pytest.raises(ValueError, match="the class 'a' of 'kind' has 1 distinct group, expected 2 or more"):
        split_texts(one)
    first, second, third = sorted("xyz", key=lambda name: hashlib.sha256(name.encode()).digest())
    names = [first, second, second, third, first, third]
    span = grouped(list("abcdef"), [(0,), (0,), (1,), (1,), (2,), (2,)], names, {"kind": ("k", "l", "m")})
    with pytest.raises(ValueError, match="all groups of 'k' of 'kind' also bear other labels, for which they are held"):
        split_texts(span)
    copies = grouped(["u", "u", "v", "w"], [(0,), (0,), (1,), (1,)], [first, second, first, second])
    with pytest.raises(
        ValueError, match="all groups of 'a' of 'kind' are fitted on as well, expected groups of its own"
    ):
        split_texts(copies)
