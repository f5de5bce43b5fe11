"""Labelled token sequences, packed into batches of one length or padded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

IGNORED = -100


def pack(
    sequences: Iterable[tuple[Sequence[int], Sequence[int]]], length: int, batch_size: int, end: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of exactly `length` tokens a row, made of sequences one after another; what is left over is lost.

    A stream is packed as it comes: at most one batch is held.

    Args:
        sequences: (token ids, class of each token), as of `label_tokens`.
        length: tokens of a row.
        batch_size: rows of a batch; the last batch may have fewer.
        end: a token to put behind each sequence, without a class; None for none.

    Yields:
        `input_ids` and `concept_labels`, each (rows, length) int64.

    Raises:
        ValueError: length or batch_size is below 1, or a sequence has another number of classes than tokens.

    >>> next(pack([([1, 2, 3], [0, 0, 1]), ([4, 5], [1, 0])], length=2, batch_size=2))["input_ids"].tolist()
    [[1, 2], [3, 4]]
    """
    _check(length, batch_size)
    size = length * batch_size
    ids: list[int] = []
    classes: list[int] = []
    for tokens, labels in _checked(sequences):
        ids += [*tokens] if end is None else [*tokens, end]
        classes += [*labels] if end is None else [*labels, IGNORED]
        while len(ids) >= size:
            yield _rows(ids[:size], classes[:size], length)
            ids, classes = ids[size:], classes[size:]
    whole = len(ids) // length * length
    if whole:
        yield _rows(ids[:whole], classes[:whole], length)


def pad(
    sequences: Iterable[tuple[Sequence[int], Sequence[int]]], length: int, batch_size: int, token: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of sequences cut to `length` tokens and padded at the right to the longest of their batch.

    A sequence without tokens is left out.

    Args:
        sequences, length, batch_size: as in `pack`.
        token: what to pad with; it is masked.

    Yields:
        `input_ids`, `attention_mask` and `concept_labels`, each (rows, tokens) int64.

    Raises:
        ValueError: as in `pack`.

    >>> next(pad([([1, 2, 3], [0, 0, 1]), ([4], [1])], length=8, batch_size=2))["attention_mask"].tolist()
    [[1, 1, 1], [1, 0, 0]]
    """
    _check(length, batch_size)
    chunk: list[tuple[Sequence[int], Sequence[int]]] = []
    for pair in _checked(sequences):
        if not len(pair[0]):
            continue
        chunk.append(pair)
        if len(chunk) == batch_size:
            yield _padded(chunk, length, token)
            chunk = []
    if chunk:
        yield _padded(chunk, length, token)


def _check(length: int, batch_size: int) -> None:
    if length < 1 or batch_size < 1:
        raise ValueError(f"length is {length} and batch_size {batch_size}, expected at least 1")


def _checked(
    sequences: Iterable[tuple[Sequence[int], Sequence[int]]],
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    for number, (tokens, labels) in enumerate(sequences):
        if len(tokens) != len(labels):
            raise ValueError(
                f"example {number} has {len(tokens)} tokens and {len(labels)} labels, expected one label a token, "
                "-100 for none"
            )
        yield tokens, labels


def _rows(ids: list[int], classes: list[int], length: int) -> dict[str, Tensor]:
    return {
        "input_ids": torch.tensor(ids).reshape(-1, length),
        "concept_labels": torch.tensor(classes).reshape(-1, length),
    }


def _padded(chunk: Sequence[tuple[Sequence[int], Sequence[int]]], length: int, token: int) -> dict[str, Tensor]:
    longest = min(length, max(len(tokens) for tokens, _ in chunk))
    shape = (len(chunk), longest)
    ids, mask = torch.full(shape, token), torch.zeros(shape, dtype=torch.int64)
    classes = torch.full(shape, IGNORED)
    for row, (tokens, labels) in enumerate(chunk):
        size = min(len(tokens), longest)
        ids[row, :size] = torch.tensor([*tokens[:size]], dtype=torch.int64)
        classes[row, :size] = torch.tensor([*labels[:size]], dtype=torch.int64)
        mask[row, :size] = 1
    return {"input_ids": ids, "attention_mask": mask, "concept_labels": classes}
