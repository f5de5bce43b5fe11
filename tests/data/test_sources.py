"""Sources of rows that keep their position."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from leace_fast.data import Source

ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(7)]


def made_source(kind: str, folder: Path) -> Any:
    if kind == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
        return folder / "a.jsonl"
    if kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
        return folder / "a.jsonl.gz"
    if kind == "python":
        return ROWS
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    if kind == "parquet":
        data.to_parquet(str(folder / "a.parquet"))
        return folder / "a.parquet"
    return data.to_iterable_dataset() if kind == "streaming" else data


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "python", "map-style", "streaming"])
@pytest.mark.parametrize("after", [0, 3, 7])
def test_a_source_goes_on_from_its_position(tmp_path, kind, after):
    source = Source(made_source(kind, tmp_path))
    rows = iter(source)
    assert [dict(next(rows)) for _ in range(after)] == ROWS[:after]
    state = json.loads(json.dumps(source.state_dict()))
    again = Source(made_source(kind, tmp_path))
    again.load_state_dict(state)
    assert [dict(row) for row in again] == ROWS[after:]
    assert again.state_dict()["rows"] == 7


def test_lines_of_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert list(Source(tmp_path / "a.txt")) == [{"text": "one"}, {"text": ""}, {"text": "two"}]


def test_wrong_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        Source(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="unknown kind, expected one of .jsonl"):
        Source(tmp_path / "a.csv")
    with pytest.raises(TypeError, match="got a dict"):
        Source({"text": "a"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="row 1 is a str"):
        list(Source([{"text": "a"}, "b"]))  # type: ignore[list-item]
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n{\n')
    with pytest.raises(ValueError, match="line 2 of .* is no JSON"):
        list(Source(tmp_path / "b.jsonl"))
    (tmp_path / "c.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="c.txt cannot be read .* expected text in UTF-8"):
        list(Source(tmp_path / "c.txt"))
