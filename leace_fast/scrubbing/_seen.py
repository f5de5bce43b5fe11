"""`Seen`: which sequences a scrubber was fitted on, as hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models import LABELS, MASK, without_labels

MOST = 65_536
BYTES = 8  # of a hash


class Seen:
    """The sequences that a scrubber was fitted on: a 64-bit hash of each, of which the 65,536 smallest are kept.

    A sequence is told by its `input_ids` where `attention_mask` is not 0, so that other padding or another batch makes
    no difference, and by images or sounds, real numbers of three axes and more; where there are no ids, by its slice of
    each input that has one, padding included. Of up to 65,536 different sequences each one is known again; of n more,
    each with a chance of 65,536 / n, so that of m that were seen some are found with a chance of
    1 - (1 - 65,536 / n)^m. One that was not seen is taken for one that was with a chance of 4e-15 at most.

    A digest holds no text, but whoever has a sequence can test with it whether it was used to fit: treat a scrubber
    of confidential texts accordingly.

    Attributes:
        sequences: how many were added, repetitions included.

    >>> seen = Seen()
    >>> seen.add({"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0]] * 2)})
    >>> seen.found({"input_ids": torch.tensor([[1, 2], [5, 6]])})
    [1]
    """

    def __init__(self) -> None:
        self.sequences = 0
        self._smallest = np.empty(0, dtype=np.uint64)  # sorted, each once
        self._fresh: list[int] = []

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take in the sequences of a batch of inputs by name."""
        for each in hashes_of(batch):
            self.sequences += 1
            if each is not None:
                self._fresh.append(each)
        if len(self._fresh) > MOST:
            self._settle()

    def found(self, batch: Mapping[str, Any]) -> list[int]:
        """The places in a batch of the sequences that were seen."""
        self._settle()
        hashes = hashes_of(batch)
        known = np.isin(np.array([each or 0 for each in hashes], dtype=np.uint64), self._smallest)
        return [place for place, each in enumerate(hashes) if each is not None and known[place]]

    def to_bytes(self) -> bytes:
        """The number of sequences, and the hashes from the smallest on, as 64-bit integers, lowest byte first."""
        self._settle()
        return np.concatenate([[np.uint64(self.sequences)], self._smallest]).astype("<u8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Seen:
        """What `to_bytes` wrote.

        Raises:
            ValueError: it wrote something else.
        """
        if not data or len(data) % BYTES or len(data) > BYTES * (MOST + 1):
            raise ValueError(f"{len(data)} bytes are no digest: expected 1 to {MOST + 1} numbers of {BYTES} bytes")
        numbers = np.frombuffer(data, dtype="<u8").astype(np.uint64)
        made = cls()
        made.sequences, made._smallest = int(numbers[0]), numbers[1:]
        if len(made._smallest) > made.sequences or bool((made._smallest[1:] <= made._smallest[:-1]).any()):
            raise ValueError("the hashes are not in order, or more than there were sequences")
        return made

    def _settle(self) -> None:
        if self._fresh:
            fresh = np.array(self._fresh, dtype=np.uint64)
            self._smallest, self._fresh = np.unique(np.concatenate([self._smallest, fresh]))[:MOST], []


def hashes_of(batch: Mapping[str, Any], count: int | None = None) -> list[int | None]:
    """The hash of each sequence of a batch, None for one that holds nothing.

    Args:
        batch: inputs by name.
        count: of its sequences; None for what its labels, or else its inputs, tell.
    """
    ids = batch.get("input_ids")
    told = _by_tokens(ids, batch) if isinstance(ids, Tensor) and ids.ndim == 2 else _by_slices(batch, count)
    return [
        int.from_bytes(hashlib.blake2b(each, digest_size=BYTES).digest(), "little") if each else None for each in told
    ]


def _by_tokens(ids: Tensor, batch: Mapping[str, Any]) -> Iterator[bytes]:
    """What tells each sequence of ids (batch, length): those that are not padding, and images or sounds beside them."""
    rows, mask = ids.cpu().numpy().astype("<i8"), batch.get(MASK)
    kept = (
        mask.cpu().bool().numpy() if isinstance(mask, Tensor) and mask.shape == ids.shape else np.ones_like(rows, bool)
    )
    beside = {
        name: value
        for name, value in without_labels(batch).items()
        if name != MASK and isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 2
    }
    more = _by_slices(beside, len(ids))
    return (row[here].tobytes() + also for row, here, also in zip(rows, kept, more, strict=True))


def _by_slices(batch: Mapping[str, Any], count: int | None = None) -> Iterator[bytes]:
    """What tells each sequence of a batch without ids: its slices of the inputs that have one, and their shapes."""
    labels = batch.get(LABELS)
    labels = next(iter(labels.values()), None) if isinstance(labels, Mapping) else labels
    inputs = {name: value for name, value in without_labels(batch).items() if name != "labels"}
    tensors = sorted((name, value) for name, value in inputs.items() if isinstance(value, Tensor) and value.ndim)
    if count is None:
        count = len(labels) if isinstance(labels, Tensor) else next((len(value) for _, value in tensors), 0)
    sliced = [(name, value.detach().cpu()) for name, value in tensors if len(value) == count]
    for place in range(count):
        parts = ((f"{name} {value.dtype} {tuple(value.shape[1:])}", value[place]) for name, value in sliced)
        yield b"".join(text.encode() + _bytes(each) for text, each in parts)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
