"""Labels of words and of stretches of text, turned into labels of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leace_fast.data import (
    Sentence,
    Texts,
    label_tokens,
    last_token_labels,
    split_texts,
    token_labels,
    word_spans,
)


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


@pytest.mark.parametrize(
    ("text", "words", "lost"),
    [
        ("He said that a cat slept", ["He", "a", "cat", "slept"], "'s' stands in the text in front of word 1"),
        ("an a", ["a"], "'n a' stands in the text behind the last word"),
        ("the cat sat", ["cat", "sat"], "'the' stands in the text in front of word 0"),
        ("du bist da", ["du", "da"], "'bist' stands in the text in front of word 1"),
        ("aa", ["a"], "'a' stands in the text behind the last word"),
        ("2 12", ["2", "2"], "'1' stands in the text in front of word 1"),
    ],
)
def test_words_that_do_not_make_up_their_text(text, words, lost):
    with pytest.raises(ValueError, match=f"{lost}.* belongs to no word, expected all words of the text in order"):
        word_spans(words, list(range(len(words))), text)
    with pytest.raises(ValueError, match=lost):
        Sentence(text, tuple(words), ("X",) * len(words)).spans({"X": 0})


def test_words_that_come_again_and_signs_between_them():
    text, spans = word_spans(["a", "a", "cat", "a"], [0, 1, -100, 2], "a, a (cat)... a!")
    assert [(text[span.start : span.end], span.start, span.label) for span in spans] == [
        *[("a", 0, 0), ("a", 3, 1), ("a", 14, 2)]
    ]


@pytest.mark.parametrize("offsets", [(0, 6), (-1, 2), (3, 2)])
def test_offsets_of_another_text(offsets):
    with pytest.raises(ValueError, match="a token is said to stand at .* in a text of 5 characters"):
        token_labels("abcde", [(0, 2, 1)], [(0, 1), offsets])


class Tokenizer:
    """A fast tokenizer with the offsets that it is given."""

    is_fast = True

    def __init__(self, *offsets):
        self.offsets = list(offsets)

    def __call__(self, text, **options):
        return {"input_ids": [1] * len(self.offsets), "offset_mapping": self.offsets}


def test_a_tokenizer_that_does_not_know_where_tokens_stand():
    with pytest.raises(ValueError, match="in text 0: Tokenizer says of no token where it stands"):
        label_tokens(Tokenizer((0, 0), (0, 0)), ["ab"], [[(0, 1, 1)]])
    assert label_tokens(Tokenizer(), ["  "], [[(0, 1, 1)]]) == [([], [])]
    assert label_tokens(Tokenizer((0, 0), (0, 1)), ["ab"], [[(0, 1, 1)]]) == [([1, 1], [-100, 1])]
    slow = Tokenizer((0, 1))
    slow.is_fast = False
    with pytest.raises(ValueError, match="does not know where its tokens stand"):
        label_tokens(slow, ["ab"], [[(0, 1, 1)]])


@pytest.mark.parametrize("text", [None, 3, b"ab", ["ab"]])
def test_texts_that_are_no_strings_are_numbered(text):
    with pytest.raises(TypeError, match="text 1 is .*, expected a string"):
        label_tokens(Tokenizer((0, 1)), ["ab", text], [[], []])
    with pytest.raises(TypeError, match="text 1 is .*, expected a string"):
        split_texts(Texts(["ab", text], [(0,), (1,)], {"kind": ("a", "b")}))


def test_half_of_a_surrogate_pair_is_told_with_its_text():
    for act in (
        lambda: label_tokens(Tokenizer((0, 1)), ["ab", "\ud83d"], [[], []]),
        lambda: split_texts(Texts(["ab", "\ud83d"], [(0,), (1,)], {"kind": ("a", "b")})),
        lambda: split_texts(Texts(["ab", "\ud83d"], [(0,), (1,)], {"kind": ("a", "b")}, [0, 1], ["x", "y"])),
    ):
        with pytest.raises(ValueError, match="text 1 holds half of a surrogate pair"):
            act()


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_that_keeps_no_token(length):
    with pytest.raises(ValueError, match="max_length is .*, expected at least 1"):
        label_tokens(Tokenizer((0, 1)), ["ab"], [[]], max_length=length)


@pytest.mark.parametrize(
    ("labels", "groups"), [([(0,)], ()), ([(0,), (1,), (0,)], ()), ([(0,), (1,)], [0]), ([(0,), (1,)], [0, 1, 2])]
)
def test_texts_with_other_numbers_of_labels_or_groups(labels, groups):
    with pytest.raises(ValueError, match="got 2 texts, the labels of . and the groups of ., expected"):
        split_texts(Texts(["a", "b"], labels, {"kind": ("a", "b")}, groups, ["x", "y", "z"]))
