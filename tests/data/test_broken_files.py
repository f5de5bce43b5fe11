"""Files of rows and of words as people have them: marks, other encodings, cut off, of another kind, doubled."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leace_fast.data import Source, _lines, read_conllu, read_texts

ROWS = [{"text": f"number {i} \N{SNOWMAN}", "label": "ab"[i % 2]} for i in range(40)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
WORDS = "# text = pain\n" + "\t".join(["1", "pain", "pain", "NOUN", *"______"]) + "\n\n"
TEXTS = {".jsonl": LINES, ".txt": "one \N{SNOWMAN}\ntwo\n", ".conllu": WORDS}


def read(path: Path) -> list[Any]:
    return list(read_conllu(path) if ".conllu" in path.name else Source(path))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r").encode(),
    ],
    ids=["a mark", "a mark, lines of Windows", "lines of an old Mac"],
)
def test_marks_and_ends_of_lines_are_no_part_of_the_text(tmp_path, kind, packed, change: Callable[[str], bytes]):
    plain = read(written(tmp_path / f"plain{kind}", TEXTS[kind].encode()))
    assert plain and read(written(tmp_path / f"a{kind}{packed}", change(TEXTS[kind]))) == plain


@pytest.mark.parametrize("kind", TEXTS)
def test_files_that_were_joined_have_marks_inside(tmp_path, kind):
    once = read(written(tmp_path / f"one{kind}", TEXTS[kind].encode()))
    both = read(written(tmp_path / f"two{kind}", TEXTS[kind].encode("utf-8-sig") * 2))
    fields = [row[:3] if kind == ".conllu" else row for row in both]  # a sentence's group is its number
    assert fields == [row[:3] if kind == ".conllu" else row for row in once] * 2


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("{}", lambda text: text.encode("utf-16"), "line 1: the file is in UTF-16: save it as UTF-8"),
        ("{}", lambda text: text.encode("utf-32"), "line 1: the file is in UTF-32"),
        ("{}", lambda text: b"\xfe\xff" + text.encode("utf-16-be"), "line 1: the file is in UTF-16"),
        ("{}", lambda text: text.encode("utf-16-le"), "line 1: a NUL byte"),
        ("{}", lambda text: text.encode() + b"caf\xe9\n", r"line \d+: the byte 0xe9 is no UTF-8"),
        ("{}", lambda text: text.encode() + b"\xed\xa0\xbd\n", r"line \d+: the byte 0xed is no UTF-8"),
        ("{}", lambda text: gzip.compress(text.encode()), "line 1: (the byte 0x8b is no UTF-8|a NUL byte)"),
        ("{}.gz", lambda text: text.encode(), "line 1 or later: Not a gzipped file"),
        ("{}.gz", lambda text: gzip.compress(text.encode())[:-9], "or later: Compressed file ended"),
        ("{}.gz", lambda text: b"\x1f\x8b\x08\x00" + b"\xff" * 60, "line 1 or later"),
        ("._{}", lambda text: b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60), "line 1: a NUL byte"),
    ],
)
def test_what_is_no_text_is_named_with_its_file_and_line(tmp_path, kind, name, data, message):
    path = tmp_path / name.format(f"some{kind}")
    path.write_bytes(data(TEXTS[kind]))
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "label": 0, "text": "b"}', "is no JSON .the key 'text' stands in it twice"),
        ('{"text": "a", "more": {"b": 1, "b": 2}}', "the key 'b' stands in it twice"),
        ('{"text": "half \\ud83d"}', "holds half of a surrogate pair"),
        ('{"text": "a", "label": "\\uDE00"}', "holds half of a surrogate pair"),
        ('{"text": "a", "\\ud83d": 1}', "holds half of a surrogate pair"),
        ('{"text": "a", "more": [["\\ud83d"]]}', "holds half of a surrogate pair"),
        ("[1, 2]", "is no object"),
        ("7", "is no object"),
        ("null", "is no object"),
        ('"text"', "is no object"),
        ("[" * 100_000, "is no JSON"),
        ('{"text": ' + "9" * 5000 + "}", "is no JSON"),
        ('{"text": "a"', "is no JSON"),
        ('{"text": "a"}{"text": "b"}', "is no JSON"),
        ("{'text': 'a'}", "is no JSON"),
    ],
)
def test_lines_of_json_that_lose_something_are_numbered(tmp_path, line, message):
    path = written(tmp_path / "a.jsonl", f'{{"text": "\\ud83d\\ude00"}}\n\n{line}\n'.encode())
    with pytest.raises(ValueError, match=f"line 3 of .*a.jsonl {message}|line 3 of .*{message}"):
        list(Source(path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("corpus.txt.jsonl", ".jsonl"), ("a.parquet.jsonl", ".jsonl"), ("a.jsonl.txt", ".txt")],
        *[("a.txt.jsonl.gz", ".jsonl"), ("a.gz.jsonl", ".jsonl"), (".jsonl.txt", ".txt")],
    ],
)
def test_the_last_suffix_says_what_a_file_is(tmp_path, name, kind):
    found = read(written(tmp_path / name, TEXTS[kind].encode()))
    assert found == read(written(tmp_path / f"plain{kind}", TEXTS[kind].encode()))


@pytest.mark.parametrize("name", ["a.jsonl.bz2", "a.csv", "a.json", "jsonl", "a.jsonl.txt.zip", "a.txt~"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="unknown kind, expected one of .jsonl"):
        Source(written(tmp_path / name, LINES.encode()))


def test_folders_and_links(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match="folder.jsonl is a folder, expected a file"):
        Source(tmp_path / "folder.jsonl")
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(FileNotFoundError, match="no file .*nowhere.jsonl"):
        Source(tmp_path / "nowhere.jsonl")
    (tmp_path / "link.jsonl").symlink_to(written(tmp_path / "there.jsonl", LINES.encode()))
    assert read(tmp_path / "link.jsonl") == ROWS


def test_a_file_that_is_empty_and_one_huge_line(tmp_path):
    for name in ("a.jsonl", "a.txt", "a.conllu", "a.jsonl.gz"):
        assert read(written(tmp_path / name, b"")) == [], name
    long = "word " * 1_000_000
    assert read(written(tmp_path / "long.jsonl", json.dumps({"text": long}).encode())) == [{"text": long}]


@pytest.fixture
def parquet() -> Any:
    return pytest.importorskip("pyarrow.parquet")


def test_broken_parquet_files(tmp_path, parquet):
    import pyarrow as pa

    path, table = tmp_path / "a.parquet", pa.Table.from_pylist(ROWS)
    parquet.write_table(table, path)
    whole = path.read_bytes()
    assert list(Source(path)) == ROWS
    broken = [b"", whole[:40], whole[: len(whole) // 2], whole[:-4], LINES.encode(), whole[:4] + bytes(len(whole) - 4)]
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="a.parquet cannot be read"):
            list(Source(path))
    two = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(two, path)
    with pytest.raises(ValueError, match="a.parquet holds the column 'text' twice"):
        list(Source(path))
    no_text = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    parquet.write_table(pa.table({"text": no_text}), path)
    with pytest.raises(ValueError, match="a.parquet cannot be read"):
        list(Source(path))
    parquet.write_table(pa.table({"a.b": ["x", "y"], "label": ["p", "q"]}), path)
    assert read_texts(path, "a.b").texts == ["x", "y"]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", ["a", 1, "b"], r"mixes int \(row 2\) and str \(row 1\), expected one type"),
        ("label", ["1", True, "b"], r"mixes bool \(row 2\) and str \(row 1\)"),
        ("label", [0, 1, True], r"mixes bool \(row 3\) and int \(row 1\)"),
        ("label", [0, 1, 0.5], r"holds 0.5 \(float\), expected classes.*\(row 3\)"),
        ("label", [0, None, float("nan")], r"holds nan \(float\).*\(row 3\)"),
        ("label", [0, 1, ["a"]], r"holds .'a'. \(list\).*\(row 3\)"),
        ("text", ["a", None, 3], r"holds 3, expected strings.*\(row 3\)"),
        ("text", ["a", "b", float("nan")], r"holds nan.*\(row 3\)"),
        ("by", [1, "1", 2], r"mixes int \(row 1\) and str \(row 2\)"),
        ("by", [True, 1, 2], r"mixes bool \(row 1\) and int \(row 2\)"),
    ],
)
def test_values_that_do_not_go_together_are_told_with_their_rows(tmp_path, column, values, message):
    rows = [
        {"text": f"t{i}", "label": i % 2, "by": i, column: value} for i, value in enumerate(values)
    ]  # missing values of a column leave the row out
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    with pytest.raises(ValueError, match=f"column '{column}' of .*a.jsonl {message}"):
        read_texts(path, groups="by")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1 He|3 slept", "line 2 of .* has the ID 3 behind word 1, expected 2"),
        ("1 He|2 slept|1 She", "line 3 of .* has the ID 1 behind word 2, expected 3"),
        ("2 He", "line 1 of .* has the ID 2 behind word 0, expected 1"),
        ("1-2 du|1 de", "the sentence of .* at the end ends with word 1 of 2"),
        ("1-2 du|1 de||1 He", "the sentence of .* in front of line 3 ends with word 1 of 2"),
        ("1-2 du|1 de|2-3 au|2 le|3 a", "line 3 of .* has the ID 2-3 behind word 1"),
        ("2-1 du", "has the ID 2-1 behind word 0"),
        ("1-1 du", "has the ID 1-1 behind word 0"),
        ("1 He|5.1 is", "has the ID 5.1 behind word 1"),
        ("1  ", "line 1 of .* has no form"),
    ],
)
def test_lines_of_conllu_that_were_lost(tmp_path, lines, message):
    rows = ["\t".join([*line.split(" ", 1), *"________"]) if line else "" for line in lines.split("|")]
    with pytest.raises(ValueError, match=message):
        list(read_conllu(written(tmp_path / "a.conllu", "\n".join(rows).encode())))


def test_empty_nodes_and_words_that_are_written_as_one(tmp_path):
    lines = ["0.1", "1-2", "1", "1.1", "1.2", "2", "3"]
    rows = ["\t".join([line, f"w{line}", *"________"]) for line in lines]
    (sentence,) = read_conllu(written(tmp_path / "a.conllu", "\n".join(rows).encode()))
    assert sentence.words == ("w1-2", "w3")


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_line_without_end_is_refused_before_it_is_read(tmp_path, monkeypatch, kind, packed):
    monkeypatch.setattr(_lines, "LONGEST", 1000)
    longest = max(map(len, TEXTS[kind].splitlines()))
    path = written(tmp_path / f"a{kind}{packed}", TEXTS[kind].encode() + b"x" * 10_000)
    with pytest.raises(ValueError, match=r"line \d+: it has more than 1,000 characters") as caught:
        read(path)
    assert str(path) in str(caught.value)
    monkeypatch.setattr(_lines, "LONGEST", longest)  # of a line that is as long, all is read
    assert read(written(tmp_path / f"b{kind}{packed}", TEXTS[kind].encode()))
