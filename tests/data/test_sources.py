"""Sources of rows that keep their position."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

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


def one_at_a_time(rows):
    yield from rows


AGAIN = ["jsonl", "jsonl.gz", "parquet", "python", "map-style", "streaming"]


@pytest.mark.parametrize("kind", AGAIN)
@pytest.mark.parametrize("left", [0, 1, 3, 6])
def test_a_source_that_is_left_goes_on_and_after_its_end_begins_anew(tmp_path, kind, left):
    source = Source(made_source(kind, tmp_path))
    first = [dict(row) for row in islice(iter(source), left)]
    assert first + [dict(row) for row in source] == ROWS
    assert [dict(row) for row in source] == ROWS and source.state_dict()["rows"] == 7


def test_a_shuffled_stream_goes_on_without_losing_a_row():
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=4)
    wanted = [row["text"] for row in stream]
    source = Source(stream)
    assert [row["text"] for part in (islice(iter(source), 3), source) for row in part] == wanted
    assert sorted(wanted) == sorted(row["text"] for row in ROWS) != wanted


@pytest.mark.parametrize("make", [one_at_a_time, iter, lambda rows: map(dict, rows)])
def test_an_iterator_goes_on_and_says_when_it_is_used_up(make):
    source = Source(make(ROWS))
    assert [*islice(iter(source), 3), *source] == ROWS
    with pytest.raises(ValueError, match="whose 7 rows were all read: it gives them once"):
        list(source)
    again = Source(make(ROWS))
    again.load_state_dict({**source.state_dict(), "rows": 3, "last": state_at(3)["last"]})
    assert list(again) == ROWS[3:]
    with pytest.raises(ValueError, match="is of row 3, and this .* is at 7"):
        again.load_state_dict(state_at(3) | {"of": {}})


def state_at(rows: int, source: Any = ROWS) -> dict[str, Any]:
    source = Source(source)
    assert len(list(islice(iter(source), rows))) == rows
    return source.state_dict()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "python", "map-style"])
def test_states_of_another_source_are_refused(tmp_path, kind):
    source = Source(made_source(kind, tmp_path))
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "another", "label": 0}) + "\n" * 30)
    before = source.state_dict()
    for state in (state_at(1, tmp_path / "other.jsonl"), state_at(1, ROWS[:3])):
        with pytest.raises(ValueError, match="is of row 1 of a source with .*: load it into the source that it was"):
            source.load_state_dict(state)
    assert source.state_dict() == before and len(list(source)) == 7, "what is refused changes nothing"


@pytest.mark.parametrize("kind", AGAIN)
def test_the_same_length_and_other_rows_are_told_where_they_are_read(tmp_path, kind):
    source = Source(made_source(kind, tmp_path))
    state = source.state_dict() | {"rows": 2, "last": state_at(2, ROWS[::-1])["last"]}
    source.load_state_dict(state)
    with pytest.raises(ValueError, match="row 1 is not the one that was read before: the state is of another source"):
        next(iter(source))


def test_a_stream_that_is_shorter_than_its_position_says_so():
    source = Source(one_at_a_time(ROWS[:2]))
    source.load_state_dict(state_at(5, one_at_a_time(ROWS)))
    with pytest.raises(ValueError, match="the source ends after 2 rows, before the position, 5"):
        list(source)


@pytest.mark.parametrize(
    "state",
    [
        *[{}, [], None, {"rows": 1}, {"rows": "1", "last": "x", "of": {"rows": 7}}],
        *[{"rows": True, "last": "x", "of": {"rows": 7}}, {"rows": -1, "last": None, "of": {"rows": 7}}],
        *[{"rows": 8, "last": "x", "of": {"rows": 7}}, {"rows": 1.0, "last": "x", "of": {"rows": 7}}],
        *[{"rows": 1, "last": None, "of": {"rows": 7}}, {"rows": 0, "last": "x", "of": {"rows": 7}}],
    ],
)
def test_what_is_no_state_is_refused(state):
    source = Source(ROWS)
    with pytest.raises(ValueError, match="the state is"):
        source.load_state_dict(state)
    assert list(source) == ROWS


def test_one_position_is_not_moved_by_two_iterations():
    source = Source(ROWS)
    first = iter(source)
    next(first)
    assert next(iter(source)) == ROWS[1]
    with pytest.raises(RuntimeError, match="was iterated anew meanwhile"):
        next(first)


@pytest.mark.parametrize("kind", ["jsonl", "python", "map-style", "streaming"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_workers_of_a_loader_share_the_rows(tmp_path, kind, workers):
    source = Source(made_source(kind, tmp_path))
    loader = DataLoader(source, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    for _ in range(2):  # epochs
        assert sorted(text for batch in loader for text in batch["text"]) == [row["text"] for row in ROWS]


def test_workers_go_on_from_a_position():
    source = Source(ROWS)
    source.load_state_dict(state_at(3))
    found = [text for batch in DataLoader(source, batch_size=1, num_workers=2) for text in batch["text"]]
    assert sorted(found) == [row["text"] for row in ROWS[3:]]
