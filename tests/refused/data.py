"""Data that its readers refuse."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

from leace_fast.data import (
    Sentence,
    Shards,
    Source,
    Texts,
    _lines,
    label_tokens,
    last_token_labels,
    pad,
    read_conllu,
    read_texts,
    split_texts,
)
from refused.refusal import Refusal

TITLE = "Texts, words and activations on disk"


def rows(folder: Path, data: bytes | str, name: str = "a.jsonl") -> list[Any]:
    """What a file of rows gives."""
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return list(Source(folder / name))


def shard(folder: Path, x: Any, y: Any) -> Shards:
    """A shard of tensors."""
    save_file({"x": x, "y": y}, folder / "a.safetensors")
    return Shards(folder)


def labels(folder: Path, *values: Any) -> Texts:
    """Texts with such labels."""
    lines = [json.dumps({"text": f"t{i}", "label": value}) for i, value in enumerate(values)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return read_texts(folder / "a.jsonl")


def twice(source: Source) -> None:
    for _ in range(2):
        list(source)


def other_state(_: Path) -> None:
    state = Source([{"text": "a"}]).state_dict()
    Source([{"text": "a"}, {"text": "b"}]).load_state_dict(state)


def sentence(folder: Path, *identifiers: str) -> list[Sentence]:
    """A sentence of CoNLL-U whose words have these IDs."""
    lines = ["\t".join([identifier, "word", *"________"]) for identifier in identifiers]
    (folder / "a.conllu").write_text("\n".join(lines))
    return list(read_conllu(folder / "a.conllu"))


def no_offsets(_: Path) -> None:
    label_tokens(object(), ["a"], [[]])


X, Y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])


def endless(folder: Path) -> None:
    """A line longer than the limit, which is lowered for it."""
    with patch.object(_lines, "LONGEST", 100):
        rows(folder, json.dumps({"text": "a" * 200}))


REFUSALS = [
    Refusal("a line of more than 67,108,864 characters", "a few bytes of a .gz file unpack to a line without end",
            endless, "characters: break it up"),
    Refusal("a text file in Latin-1", "letters would be others: save it as UTF-8",
            lambda f: rows(f, b"caf\xe9", "a.txt"), "the byte 0xe9 is no UTF-8"),
    Refusal("a file in UTF-16 or UTF-32", "save it as UTF-8; a mark of UTF-8 itself is left out",
            lambda f: rows(f, "a".encode("utf-16"), "a.txt"), "is in UTF-16"),
    Refusal("a file with NUL bytes", "it is binary, such as the `._` files of an archive",
            lambda f: rows(f, b"a\0b", "a.txt"), "a NUL byte"),
    Refusal("a .gz file that was cut off", "rows would be lost: fetch it again",
            lambda f: rows(f, gzip.compress(b"{}\n" * 99)[:-9], "a.jsonl.gz"), "cannot be read"),
    Refusal("plain text in a .gz file", "rename it", lambda f: rows(f, b"{}", "a.jsonl.gz"), "Not a gzipped file"),
    Refusal("a key twice in a line of JSON, or a column in a .parquet file", "one of two values would be lost",
            lambda f: rows(f, '{"text": "a", "text": "b"}'), "stands in it twice"),
    Refusal("half of a surrogate pair", "no tokenizer and no file takes it: repair the text",
            lambda f: rows(f, '{"text": "\\ud83d"}'), "half of a surrogate pair"),
    Refusal("a line of JSON that is no object", "rows have columns by name", lambda f: rows(f, "[1]"), "is no object"),
    Refusal("labels of several types", '1, "1" and true would be three classes, or one',
            lambda f: labels(f, 1, "1"), "mixes int (row 1) and str (row 2)"),
    Refusal("labels with a fraction, NaN or lists", "they are no classes",
            lambda f: labels(f, 0.5, 1.5), "expected classes"),
    Refusal("one class", "there is no concept to erase", lambda f: labels(f, "a", "a"), "only the class 'a'"),
    Refusal("a generator, read a second time", "it would give nothing: pass a list, or a file",
            lambda f: twice(Source(row for row in [{"text": "a"}])), "it gives them once"),
    Refusal("the position of another source", "rows would be lost, or come twice", other_state,
            "load it into the source"),
    Refusal("words that do not make up their text", "a word that was lost shifts the labels of others",
            lambda f: Sentence("a cat", ("cat",), ("X",)).spans({"X": 0}), "belongs to no word"),
    Refusal("a line of CoNLL-U that is lost", "words are numbered one after another",
            lambda f: sentence(f, "1", "3"), "expected 2"),
    Refusal("labels that the cut to a length would take from a sequence", "the sequence would count for nothing",
            lambda f: list(pad(last_token_labels([[1, 2, 3]], [1]), 2, 1)), "its label would be lost"),
    Refusal("no token to pad with", "any will do, as it is masked",
            lambda f: list(pad([([1], [0])], 2, 1, token=None)), "token is None"),  # type: ignore[arg-type]
    Refusal("a tokenizer without offsets", "it does not know where its tokens stand: load the fast one", no_offsets,
            "does not know where its tokens stand"),
    Refusal("labels of tokens with a fraction", "they would be cut to integers",
            lambda f: list(pad([([1], [0.5])], 2, 1)), "expected integers", TypeError),  # type: ignore[list-item]
    Refusal("a text without a label of its own", "texts, labels and groups go together by place",
            lambda f: split_texts(Texts(["a", "b"], [(0,)], {"k": ("x", "y")})), "expected labels for each text"),
    Refusal("activations of 8 bits, integers or complex numbers", "convert them to 16, 32 or 64 bits",
            lambda f: shard(f, X.to(torch.float8_e4m3fn), Y), "expected floating-point numbers of 16, 32 or 64 bits"),
    Refusal("labels of activations in floating point", "they are classes", lambda f: shard(f, X, Y.bfloat16()),
            "y of"),
    Refusal("arrays of objects in .npy and .npz files", "unpickling runs code",
            lambda f: (np.save(f / "x.npy", np.array([{}])), np.save(f / "y.npy", Y), Shards(f)), "cannot be read"),
]  # fmt: skip
