"""Batches of labelled token sequences: rows of one length, or rows padded to the longest of their batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..models import GROUPS, LABELS
from ..statistics import IGNORE
from ._windows import Window

T = TypeVar("T")
Labelled = tuple[Sequence[int], Sequence[int]]  # token ids, and the class of each


def pack(
    sequences: Iterable[Labelled],
    length: int,
    batch_size: int,
    end: int | None = None,
    groups: Iterable[int] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of exactly `length` tokens a row, made of sequences one after another; what is left over is lost.

    A stream is packed as it comes: at most one batch is held.

    Args:
        sequences: (token ids, class of each token), as of `label_tokens`.
        length: tokens of a row.
        batch_size: rows of a batch; the last batch may have fewer.
        end: a token to put behind each sequence, without a class; None for none.
        groups: the number of each sequence's text, speaker or the like; None for none.

    Yields:
        `input_ids` and `concept_labels`, and of groups `concept_groups`, each (rows, length) int64.

    Raises:
        ValueError: length or batch_size is below 1, a sequence has another number of classes than tokens, or there are
            more or fewer groups than sequences.
        TypeError: tokens or classes are no integers.

    >>> next(pack([([1, 2, 3], [0, 0, 1]), ([4, 5], [1, 0])], length=2, batch_size=2))["input_ids"].tolist()
    [[1, 2], [3, 4]]
    """
    _check(length, batch_size)
    size = length * batch_size
    ids: list[int] = []
    columns = {"input_ids": ids, LABELS: []} | ({} if groups is None else {GROUPS: []})

    def rows(taken: int) -> dict[str, Tensor]:
        return {name: torch.tensor(values[:taken]).reshape(-1, length) for name, values in columns.items()}

    for tokens, labels, group in _checked(sequences, groups):
        made = [*tokens] if end is None else [*tokens, end]
        each = (made, [*labels, IGNORE][: len(made)], [group] * len(made))
        for values, more in zip(columns.values(), each, strict=False):
            values += more
        while len(ids) >= size:
            yield rows(size)
            for values in columns.values():
                del values[:size]
    if whole := len(ids) // length * length:
        yield rows(whole)


def pad(
    sequences: Iterable[Labelled],
    length: int,
    batch_size: int,
    token: int = 0,
    groups: Iterable[int] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of sequences cut to `length` tokens and padded at the right to the longest of their batch.

    A sequence without tokens is left out.

    Args:
        sequences, length, batch_size, groups: as in `pack`.
        token: what to pad with; it is masked.

    Yields:
        `input_ids`, `attention_mask` and `concept_labels`, each (rows, tokens) int64, and of groups `concept_groups`
        (rows,) int64.

    Raises:
        TypeError: as in `pack`.
        ValueError: as in `pack`; token is None or below 0; or the cut takes all the labels that a sequence has, as that
            of a last token.

    >>> next(pad([([1, 2, 3], [0, 0, 1]), ([4], [1])], length=8, batch_size=2))["attention_mask"].tolist()
    [[1, 1, 1], [1, 0, 0]]
    """
    _check(length, batch_size)
    given = (example for example in _checked(sequences, groups, length) if len(example[0]))
    for chunk in _chunks(given, batch_size):
        ids, classes = (
            [torch.tensor([*part[:length]], dtype=torch.int64) for part in parts]
            for parts in zip(*(example[:2] for example in chunk), strict=True)
        )
        yield _padded({"input_ids": ids, LABELS: classes}, token, [group for *_, group in chunk])


def batched(windows: Sequence[Window], batch_size: int, token: int) -> Iterator[dict[str, Tensor]]:
    """Yield padded batches of windows, those of like length together.

    Args:
        windows: as of `text_windows`.
        batch_size: rows of a batch; the last batch may have fewer.
        token: what to pad with; it is masked.

    Yields:
        `input_ids`, `attention_mask`, `labels` (the tokens that are scored) and `concept_labels`, each (rows, tokens)
        int64, -100 where a token is context or padding; of several concepts, `concept_labels` has an axis of these
        more. Of windows with groups, `concept_groups` (rows,) int64.

    Raises:
        ValueError: batch_size is below 1, token is None or below 0, or some windows have a group and others have none.

    >>> window = Window(torch.tensor([7, 8, 9]), scored=2, concept_labels=torch.tensor([0, 0, 1]))
    >>> next(batched([window], batch_size=4, token=0))["labels"].tolist()
    [[-100, 8, 9]]
    """
    _check(1, batch_size)
    if len({window.group is None for window in windows}) > 1:
        raise ValueError("some windows have a group and others have none, expected one for all or for none")
    for chunk in _chunks(sorted(windows, key=lambda window: -len(window.input_ids)), batch_size):
        columns = {
            "input_ids": [window.input_ids for window in chunk],
            "labels": [_scored(window.input_ids, window.scored) for window in chunk],
            LABELS: [_scored(window.concept_labels, window.scored) for window in chunk],
        }
        yield _padded(columns, token, [window.group for window in chunk])


def _check(length: int, batch_size: int) -> None:
    if length < 1 or batch_size < 1:
        raise ValueError(f"length is {length} and batch_size {batch_size}, expected at least 1")


def _checked(
    sequences: Iterable[Labelled], groups: Iterable[int] | None, cut: int | None = None
) -> Iterator[tuple[Sequence[int], Sequence[int], int | None]]:
    """Each sequence, which will be cut to so many tokens, with its group, None if there are no groups."""
    left = iter(groups) if groups is not None else repeat(None)
    for number, (tokens, labels) in enumerate(sequences):
        if len(tokens) != len(labels):
            raise ValueError(
                f"example {number} has {len(tokens)} tokens and {len(labels)} labels, expected one label a token, "
                f"{IGNORE} for none"
            )
        _check_integers(tokens, f"the tokens of example {number}")
        _check_integers(labels, f"the labels of example {number}")
        if cut is not None and len(tokens) > cut:
            _check_cut(labels, cut, number)
        group = next(left, IGNORE)
        if group is not None and group < 0:
            came = "no group" if group == IGNORE else f"the group {group}"
            raise ValueError(f"example {number} has {came}, expected an integer of 0 or more for each example")
        yield tokens, labels, group
    if groups is not None and next(left, None) is not None:
        raise ValueError("there are more groups than examples, expected one for each")


def _check_integers(values: Sequence[int], what: str) -> None:
    """Raise TypeError for what a tensor of integers would cut to an integer, or not hold."""
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex():
            raise TypeError(f"{what} are of {values.dtype}, expected integers")
        return
    for value in values:
        if not isinstance(value, int) and not hasattr(value, "__index__"):
            raise TypeError(f"{what} hold {value!r} ({type(value).__name__}), expected integers")


def _check_cut(labels: Sequence[int], length: int, number: int) -> None:
    """Raise ValueError where a sequence has labels, and all of them are behind the cut."""
    first = next((place for place, label in enumerate(labels) if label != IGNORE), 0)
    if first >= length:
        raise ValueError(
            f"example {number} has {len(labels)} tokens and its first label at token {first}, and is cut to {length}: "
            "its label would be lost; cut the tokens before they are labelled, give a larger length, or leave it out"
        )


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def _scored(values: Tensor, scored: int) -> Tensor:
    """The values of a window's last tokens, without those of the context before them."""
    return torch.cat([torch.full_like(values[: len(values) - scored], IGNORE), values[len(values) - scored :]])


def _padded(columns: Mapping[str, Sequence[Tensor]], token: int, groups: Sequence[int | None]) -> dict[str, Tensor]:
    """One batch: the rows of each column, filled at the right; the mask comes behind the tokens, groups are last."""
    if token is None:  # what a tokenizer without a token to pad with says of it
        raise ValueError("token is None, expected the number of a token to pad with: it is masked, so that any will do")
    if isinstance(token, bool) or not hasattr(token, "__index__") or token < 0:
        raise ValueError(f"token is {token!r}, expected the number of a token to pad with, 0 or more")
    ids = columns["input_ids"]
    batch = {
        "input_ids": pad_sequence([*ids], batch_first=True, padding_value=token),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }
    others = {name: rows for name, rows in columns.items() if name not in batch}
    of_groups = {} if None in groups else {GROUPS: torch.tensor(groups, dtype=torch.int64)}
    return batch | {name: pad_sequence([*rows], True, IGNORE) for name, rows in others.items()} | of_groups
