"""Labelled texts and activations on disk."""

from __future__ import annotations

from ._conllu import UPOS, Sentence, read_conllu
from ._packing import pack, pad
from ._shards import SHARD_SUFFIXES, Shards
from ._sources import Source
from ._spans import Span, label_tokens, last_token_labels, token_labels, word_spans
from ._texts import NO_CLASS, Texts, Window, as_classes, batched, read_texts, split_texts, text_windows

__all__ = [
    "NO_CLASS",
    "SHARD_SUFFIXES",
    "Sentence",
    "Shards",
    "Source",
    "Span",
    "Texts",
    "UPOS",
    "Window",
    "as_classes",
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
    "word_spans",
]
