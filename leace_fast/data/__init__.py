"""Labelled texts and activations on disk."""

from __future__ import annotations

from ._batches import batched, pack, pad
from ._conllu import UPOS, Sentence, read_conllu
from ._shards import SHARD_SUFFIXES, Shards
from ._sources import Source
from ._spans import Span, label_tokens, last_token_labels, token_labels, word_spans
from ._split import split_texts
from ._texts import Texts, read_texts
from ._windows import Window, text_windows, whole_texts

__all__ = [
    "SHARD_SUFFIXES",
    "Sentence",
    "Shards",
    "Source",
    "Span",
    "Texts",
    "UPOS",
    "Window",
    "batched",
    "label_tokens",
    "last_token_labels",
    "pack",
    "pad",
    "read_conllu",
    "read_texts",
    "split_texts",
    "text_windows",
    "token_labels",
    "whole_texts",
    "word_spans",
]


def __dir__() -> list[str]:
    return sorted(__all__)
