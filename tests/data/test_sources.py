"""From texts with labels to batches: spans, CoNLL-U, packing, sources."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leace_fast.data import (
    UPOS,
    Source,
    label_tokens,
    last_token_labels,
    pack,
    pad,
    read_conllu,
    token_labels,
    word_spans,
)
from leace_fast.demo._language_model import train_tokenizer

SAMPLE = Path(__file__).parent / "sample.conllu"


# --------------------------------------------------------------------- spans


@pytest.mark.parametrize(
    ("offsets", "label"),
    [
        ((0, 3), 0),  # the word
        ((1, 3), 0),  # a part of it
        ((3, 8), 1),  # white space before a word belongs to it
        ((2, 6), -100),  # straddles two classes
        ((9, 14), -100),  # a word without a class
        ((4, 12), -100),  # reaches out of all spans
        ((3, 4), -100),  # white space alone
        ((0, 0), -100),  # a special token
    ],
)
def test_a_token_has_the_class_of_its_characters(offsets, label):
    assert token_labels("Das Auto fährt", [(0, 3, 0), (4, 8, 1)], [offsets]) == [label]


@given(st.lists(st.tuples(st.text("abé", min_size=1, max_size=4), st.integers(0, 2)), min_size=1, max_size=8))
def test_words_that_are_tokens_keep_their_labels(pairs):
    words, labels = [word for word, _ in pairs], [label for _, label in pairs]
    text, spans = word_spans(words, labels)
    assert [text[span.start : span.end] for span in spans] == words
    assert token_labels(text, spans, [(span.start, span.end) for span in spans]) == labels


@pytest.mark.parametrize(
    ("spans", "message"),
    [([(0, 9, 1)], "does not lie in a text of 5"), ([(2, 2, 1)], "does not lie"), ([(0, 3, 1), (2, 4, 0)], "overlaps")],
)
def test_wrong_spans(spans, message):
    with pytest.raises(ValueError, match=message):
        token_labels("abcde", spans, [(0, 1)])


def test_wrong_words():
    with pytest.raises(ValueError, match="got 2 words and 1 labels"):
        word_spans(["a", "b"], [0])
    with pytest.raises(ValueError, match="word 1 is empty"):
        word_spans(["a", " "], [0, 1])
    with pytest.raises(ValueError, match="word 1, 'a', does not stand in the text behind character 3"):
        word_spans(["b", "a"], [0, 1], "a b")


# ------------------------------------------------------------------- CoNLL-U


def test_conllu_sentences():
    first, second, third = read_conllu(SAMPLE)
    assert first.text == "The old clock stopped." and first.tags == ("DET", "ADJ", "NOUN", "VERB", "PUNCT")
    assert second.words[:3] == ("Don't", "wake", "the") and second.tags[0] == "_" and "_" not in second.words
    assert third.words[-1] == "stove" and len(third.words) == 8
    assert [s.tags[-1] for s in read_conllu(SAMPLE, "XPOS")] == [".", ".", "NN"]
    classes = {tag: index for index, tag in enumerate(UPOS)}
    spans = second.spans(classes)
    assert [second.text[span.start : span.end] for span in spans] == list(second.words[1:])
    assert spans[0].label == classes["VERB"]


def test_conllu_part_of_speech_of_tokens():
    sentences = list(read_conllu(SAMPLE))
    tokenizer = train_tokenizer([sentence.text for sentence in sentences], 300)
    classes = {"NOUN": 0, "VERB": 1}
    made = label_tokens(tokenizer, [s.text for s in sentences], [s.spans(classes) for s in sentences])
    for sentence, (ids, labels) in zip(sentences, made, strict=True):
        for label, tag in enumerate(("NOUN", "VERB")):
            found = "".join(str(tokenizer.decode([i])) for i, y in zip(ids, labels, strict=True) if y == label)
            wanted = "".join(w for w, t in zip(sentence.words, sentence.tags, strict=True) if t == tag)
            assert found.replace(" ", "") == wanted


def test_wrong_conllu(tmp_path):
    with pytest.raises(ValueError, match="unknown field 'POS'"):
        next(read_conllu(SAMPLE, "POS"))
    (tmp_path / "a.conllu").write_text("# text = x\n1\tx\tX\n")
    with pytest.raises(ValueError, match="line 2 of .* has 3 fields, expected 10"):
        next(read_conllu(tmp_path / "a.conllu"))
    for number in ("x", "1-x", "2.", ""):
        (tmp_path / "a.conllu").write_text("\n" + "\t".join([number, "x", *"_" * 8]) + "\n")
        with pytest.raises(ValueError, match=f"line 2 of .* has the ID '{number}', expected a number, 2-3 or 8.1"):
            next(read_conllu(tmp_path / "a.conllu"))
    with pytest.raises(FileNotFoundError):
        next(read_conllu(tmp_path / "b.conllu"))


# ------------------------------------------------------------------- packing


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=7), max_size=12),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([None, 0]),
)
def test_packing_loses_nothing_but_the_end(sequences, length, rows, end):
    pairs = [(ids, [i % 3 for i in ids]) for ids in sequences]
    batches = list(pack(iter(pairs), length, rows, end))
    wanted = [token for ids in sequences for token in (ids if end is None else [*ids, end])]
    ids = torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist() if batches else []
    labels = torch.cat([batch["concept_labels"].flatten() for batch in batches]).tolist() if batches else []
    assert ids == wanted[: len(wanted) // length * length]
    assert labels == [-100 if token == 0 else token % 3 for token in ids]
    assert all(batch["input_ids"].shape == (rows, length) for batch in batches[:-1])


def test_padding_is_masked_and_has_no_class():
    (one, two) = pad([([1, 2, 3], [0, 1, 2]), ([4], [1]), ([5] * 9, [0] * 9)], length=4, batch_size=2, token=7)
    assert one["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert one["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert one["concept_labels"].tolist() == [[0, 1, 2], [1, -100, -100]]
    assert two["input_ids"].shape == (1, 4)


def test_sequences_without_tokens_are_no_rows():
    (batch,) = pad([([], []), ([7], [1]), ([], [])], length=4, batch_size=2)
    assert batch["input_ids"].tolist() == [[7]] and not list(pad([([], [])], length=4, batch_size=2))


@pytest.mark.parametrize("make", [pack, pad])
def test_labels_of_the_wrong_length_name_the_example(make):
    with pytest.raises(ValueError, match="example 1 has 3 tokens and 2 labels"):
        list(make([([1, 2], [0, 0]), ([1, 2, 3], [0, 0])], 4, 2))
    with pytest.raises(ValueError, match="length is 0"):
        list(make([], 0, 2))


def test_last_token_labels():
    assert last_token_labels([[1, 2], [3]], [5, 6]) == [([1, 2], [-100, 5]), ([3], [6])]
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        last_token_labels([[1], []], [0, 1])
    with pytest.raises(ValueError, match="got 1 texts and 2 labels"):
        last_token_labels([[1]], [0, 1])


# ------------------------------------------------------------------- sources

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
