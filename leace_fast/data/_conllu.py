"""CoNLL-U: sentences with the part of speech of each word, the format of Universal Dependencies."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..statistics import IGNORE
from ._lines import numbered_lines
from ._spans import Span, word_spans

FIELDS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
# the universal parts of speech, https://universaldependencies.org/u/pos/
UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)


class Sentence(NamedTuple):
    """A sentence with the value of each word in one field.

    Attributes:
        text: the sentence as it is written.
        words: the words, in order.
        tags: the value of each word; "_" where it has none.
        group: the number of its document (`# newdoc`); where the file names none, each sentence is one.
    """

    text: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    group: int = 0

    def spans(self, classes: dict[str, int]) -> list[Span]:
        """Return the words whose tag has a class, as spans of the text.

        Args:
            classes: the class of each tag; words of other tags are left out.

        Raises:
            ValueError: a word is empty, the text lacks one, or has letters that belong to no word.

        >>> Sentence("She ran.", ("She", "ran", "."), ("PRON", "VERB", "PUNCT")).spans({"PRON": 0, "VERB": 1})
        [Span(start=0, end=3, label=0), Span(start=4, end=7, label=1)]
        """
        return word_spans(self.words, [classes.get(tag, IGNORE) for tag in self.tags], self.text)[1]


def read_conllu(path: str | os.PathLike[str], field: str = "UPOS") -> Iterator[Sentence]:
    r"""Yield the sentences of a CoNLL-U file.

    Words that are written as one (`2-3`, such as the French "du") count as their surface form, without a tag; empty
    nodes (`8.1`) are no words. The text is that of the comment `# text = `, else the words joined by blanks.

    Args:
        path: a UTF-8 file, plain or in .gz.
        field: what to read: "UPOS", "XPOS", "DEPREL" or another of the ten fields.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown field, a file that cannot be read, a line that is none of CoNLL-U, or one that does not
            follow the one before it; it is numbered.

    >>> import tempfile
    >>> lines = ["\t".join([*word.split(), *"______"]) for word in ("1 She she PRON", "2 ran run VERB")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "two.conllu").write_text("\n".join(lines))
    ...     list(read_conllu(Path(folder, "two.conllu")))
    [Sentence(text='She ran', words=('She', 'ran'), tags=('PRON', 'VERB'), group=0)]
    """
    if field not in FIELDS:
        raise ValueError(f"unknown field {field!r}, expected one of {', '.join(FIELDS)}")
    column = FIELDS.index(field)
    text, words, last, covered, group, in_document = "", [], 0, 0, 0, False
    for number, line in chain(numbered_lines(Path(path), "CoNLL-U in UTF-8"), [(-1, "\n")]):
        line = line.rstrip("\r\n")
        if not line.strip():
            if last < covered:
                where = f"in front of line {number}" if number > 0 else "at the end"
                raise ValueError(f"the sentence of {path} {where} ends with word {last} of {covered}")
            if words:
                forms = tuple(form for form, _ in words)
                yield Sentence(text or " ".join(forms), forms, tuple(tag for _, tag in words), group)
                group += not in_document
            text, words, last, covered = "", [], 0, 0
        elif line.startswith("#"):
            key, _, value = line[1:].partition("=")
            text = value.strip() if key.strip() == "text" else text
            if key.split()[:1] == ["newdoc"]:
                group, in_document = group + in_document, True
        else:
            cells = _cells(line, number, path)
            first, end = _place(cells[0], last, covered, f"line {number} of {path}")
            if end > first:
                covered = end
                words.append((cells[1], "_"))
            elif end == first:
                last = first
                if first > covered:
                    words.append((cells[1], cells[column]))


def _cells(line: str, number: int, path: str | os.PathLike[str]) -> list[str]:
    """The ten fields of a line."""
    cells = line.split("\t")
    if len(cells) != len(FIELDS):
        raise ValueError(f"line {number} of {path} has {len(cells)} fields, expected {len(FIELDS)} with tabs between")
    if not re.fullmatch(r"\d+(-\d+|\.\d+)?", cells[0]):
        raise ValueError(f"line {number} of {path} has the ID {cells[0]!r}, expected a number, 2-3 or 8.1")
    if not cells[1].strip():
        raise ValueError(f"line {number} of {path} has no form, expected a word")
    return cells


def _place(identifier: str, last: int, covered: int, where: str) -> tuple[int, int]:
    """The first and the last word that a line is of; of an empty node the word before it, and 0.

    Args:
        identifier: the line's ID.
        last: the word of the line before.
        covered: the last word that is written as one with others.
        where: the line, for the error: where IDs do not follow each other, a line was lost, or an empty line.
    """
    first, _, end = identifier.partition("-")
    before, node, _ = first.partition(".")
    begin, finish = int(before), int(end or before)
    overlaps = bool(end) and (begin <= covered or finish <= begin)
    if begin != last + (not node) or overlaps:
        raise ValueError(
            f"{where} has the ID {identifier} behind word {last}, expected {last + 1}: words are numbered from 1 on in "
            "each sentence, with an empty line between two"
        )
    return begin, 0 if node else finish
