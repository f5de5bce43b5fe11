"""CoNLL-U: sentences, and the part of speech of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from leace_fast.data import UPOS, label_tokens, read_conllu
from leace_fast.demo._language_model import train_tokenizer

SAMPLE = Path(__file__).parent / "sample.conllu"


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


def test_the_group_of_a_sentence_is_its_document_or_itself(tmp_path):
    def written(*lines):
        word = "\t".join(["1", "x", *"_" * 8])
        (tmp_path / "a.conllu").write_text("".join(f"{word}\n\n" if line == "S" else f"{line}\n" for line in lines))
        return [sentence.group for sentence in read_conllu(tmp_path / "a.conllu")]

    assert [sentence.group for sentence in read_conllu(SAMPLE)] == [0, 1, 2]
    assert written("# newdoc id = a", "S", "# newpar", "S", "# newdoc id = b", "S", "S") == [0, 0, 1, 1]
    assert written("# newdoc", "# text = x", "S", "# newdoc", "S", "S") == [0, 1, 1]
    assert written("S", "S", "# newdoc id = a", "S", "S", "# newdoc id = b", "S") == [0, 1, 2, 2, 3]
