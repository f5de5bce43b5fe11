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
    no difference; where there are none, by its slice of each input that has one, padding included. Of up to 65,536
    different sequences each one is known again; of n more, each with a chance of 65,536 / n, so that of m that were
    seen some are found with a chance of 1 - (1 - 65,536 / n)^m. One that was not seen is taken for one that was with a
    chance of 4e-15 at most.

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
        for each in _hashes(batch):
            self.sequences += 1
            if each is not None:
                self._fresh.append(each)
        if len(self._fresh) > MOST:
            self._settle()

    def found(self, batch: Mapping[str, Any]) -> list[int]:
        """The places in a batch of the sequences that were seen."""
        self._settle()
        hashes = list(_hashes(batch))
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


def _hashes(batch: Mapping[str, Any]) -> Iterator[int | None]:
    """The hash of each sequence of a batch, None for one that holds nothing."""
    ids = batch.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 2:
        mask = batch.get(MASK)
        ids = ids.cpu().to(torch.int64).numpy()
        kept = mask.cpu().bool().numpy() if isinstance(mask, Tensor) and mask.shape == ids.shape else None
        for place, row in enumerate(ids):
            tokens = row if kept is None else row[kept[place]]
            yield _hash(tokens.astype("<i8", copy=False).tobytes()) if len(tokens) else None
        return
    labels = batch.get(LABELS)
    labels = next(iter(labels.values()), None) if isinstance(labels, Mapping) else labels
    inputs = sorted((name, value) for name, value in without_labels(batch).items() if isinstance(value, Tensor))
    count = len(labels) if isinstance(labels, Tensor) else next((len(v) for _, v in inputs if v.ndim), 0)
    sliced = [(n, v.detach().cpu()) for n, v in inputs if n != "labels" and v.ndim and len(v) == count]
    for place in range(count):
        parts = [
            f"{name} {value.dtype} {tuple(value.shape[1:])}".encode() + _bytes(value[place]) for name, value in sliced
        ]
        yield _hash(b"".join(parts)) if parts else None


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=BYTES).digest(), "little")
