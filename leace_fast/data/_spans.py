"""Labels of words and of stretches of text, turned into labels of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..statistics import IGNORE
from ._lines import check_text


class Span(NamedTuple):
    """A stretch of a text, `text[start:end]`, and its class.

    Attributes:
        start, end: in characters.
        label: the class.
    """

    start: int
    end: int
    label: int


def token_labels(text: str, spans: Sequence[tuple[int, int, int]], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return the class of each token: that of its characters, -100 where it straddles.

    A token has a class if all its characters but white space lie in spans of that class; one that reaches into
    another class, or out of all spans, has none, nor has one without characters, such as a special token.

    Args:
        text: the text.
        spans: (start, end, class) in characters; they must not overlap.
        offsets: (start, end) of each token in characters, as tokenizers return with `return_offsets_mapping=True`.

    Raises:
        ValueError: a span or a token lies outside of the text, a span is empty, or overlaps another.

    >>> token_labels("ab cd", [(0, 2, 0), (3, 5, 1)], [(0, 2), (2, 5), (1, 4), (0, 0)])
    [0, 1, -100, -100]
    """
    classes = [IGNORE] * len(text)
    for start, end, label in spans:
        if not 0 <= start < end <= len(text):
            raise ValueError(f"the span ({start}, {end}) does not lie in a text of {len(text)} characters")
        if any(known != IGNORE for known in classes[start:end]):
            raise ValueError(f"the span ({start}, {end}) overlaps another one: {text[start:end]!r}")
        classes[start:end] = [label] * (end - start)
    labels = []
    for start, end in offsets:
        if not 0 <= start <= end <= len(text):
            raise ValueError(
                f"a token is said to stand at ({start}, {end}) in a text of {len(text)} characters, expected offsets "
                "of this very text"
            )
        found = {classes[i] for i in range(start, end) if not text[i].isspace()}
        labels.append(found.pop() if len(found) == 1 else IGNORE)
    return labels


def word_spans(words: Sequence[str], labels: Sequence[int], text: str | None = None) -> tuple[str, list[Span]]:
    """Return a text of words and the span of each: joined by blanks, or found in order in the text that is given.

    Args:
        words: the words; white space around them does not count.
        labels: the class of each, -100 for none.
        text: where the words stand, in order: all its letters and digits are in some word; None to join them.

    Raises:
        ValueError: the numbers of words and labels differ, a word is empty, the text lacks one, or has letters or
            digits that belong to no word.

    >>> word_spans(["to", "be"], [0, 1])
    ('to be', [Span(start=0, end=2, label=0), Span(start=3, end=5, label=1)])
    """
    if len(words) != len(labels):
        raise ValueError(f"got {len(words)} words and {len(labels)} labels, expected one label a word")
    joined = " ".join(word.strip() for word in words) if text is None else text
    spans, at = [], 0
    for word, label in zip(words, labels, strict=True):
        if not (word := word.strip()):
            raise ValueError(f"word {len(spans)} is empty, expected words with characters")
        start = joined.find(word, at)
        if start < 0:
            raise ValueError(f"word {len(spans)}, {word!r}, does not stand in the text behind character {at}")
        at = start + len(word)
        spans.append(Span(start, at, label))
    _check_whole(joined, spans)
    return joined, [span for span in spans if span.label != IGNORE]


def _check_whole(text: str, spans: Sequence[Span]) -> None:
    """Raise ValueError for letters or digits that no span has: a word that was lost shifts the others."""
    ends, starts = [0, *(span.end for span in spans)], [*(span.start for span in spans), len(text)]
    for number, (end, start) in enumerate(zip(ends, starts, strict=True)):
        if any(sign.isalnum() for sign in text[end:start]):
            where = f"in front of word {number}" if number < len(spans) else "behind the last word"
            raise ValueError(
                f"{text[end:start].strip()!r} stands in the text {where} and belongs to no word, expected all words of "
                f"the text in order, with the class {IGNORE} for those that have none"
            )


def label_tokens(
    tokenizer: Any,
    texts: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int, int]]],
    max_length: int | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Return (token ids, class of each token) of each text, with the tokenizer's special tokens.

    Args:
        tokenizer: a fast tokenizer of transformers: one that knows where in the text its tokens stand.
        texts: the texts.
        spans: of each text, as in `token_labels`.
        max_length: most tokens of a text; the rest is cut.

    Raises:
        TypeError: a text is no string; it is numbered.
        ValueError: the tokenizer has no offsets, the numbers differ, max_length is below 1, or a text or a span does
            not fit; the text is numbered.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "she": 1, "ran": 2}, unk_token="[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> label_tokens(PreTrainedTokenizerFast(tokenizer_object=words), ["she ran"], [[(0, 3, 1)]])
    [([1, 2], [1, -100])]
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} does not know where its tokens stand: load a fast tokenizer")
    if len(texts) != len(spans):
        raise ValueError(f"got {len(texts)} texts and spans for {len(spans)}, expected spans for each text")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is {max_length}, expected at least 1, or None not to cut")
    options: dict[str, Any] = {} if max_length is None else {"truncation": True, "max_length": max_length}
    made = []
    for number, (text, labelled) in enumerate(zip(texts, spans, strict=True)):
        check_text(text, f"text {number}")
        found = tokenizer(text, return_offsets_mapping=True, verbose=False, **options)
        offsets = found["offset_mapping"]
        try:
            made.append((found["input_ids"], token_labels(text, labelled, offsets)))
            if len(labelled) and len(offsets) and not any(end > start for start, end in offsets):
                raise ValueError(f"{type(tokenizer).__name__} says of no token where it stands: load another tokenizer")
        except ValueError as error:
            raise ValueError(f"in text {number}: {error}") from None
    return made


def last_token_labels(tokens: Sequence[Sequence[int]], labels: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return (token ids, classes) of each text, its class at the last token and -100 at the others.

    Args:
        tokens: token ids of each text.
        labels: class of each text.

    Raises:
        ValueError: the numbers differ, or a text has no tokens; it is numbered.

    >>> last_token_labels([[5, 6, 7]], [1])
    [([5, 6, 7], [-100, -100, 1])]
    """
    if len(tokens) != len(labels):
        raise ValueError(f"got {len(tokens)} texts and {len(labels)} labels, expected one label a text")
    for number, ids in enumerate(tokens):
        if not len(ids):
            raise ValueError(f"text {number} has no tokens: leave it out")
    return [(list(ids), [IGNORE] * (len(ids) - 1) + [label]) for ids, label in zip(tokens, labels, strict=True)]
