"""Labels of words and of stretches of text, turned into labels of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leace_fast.data import last_token_labels, token_labels, word_spans


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


def test_last_token_labels():
    assert last_token_labels([[1, 2], [3]], [5, 6]) == [([1, 2], [-100, 5]), ([3], [6])]
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        last_token_labels([[1], []], [0, 1])
    with pytest.raises(ValueError, match="got 1 texts and 2 labels"):
        last_token_labels([[1]], [0, 1])
