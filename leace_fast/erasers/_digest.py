"""Digests of erasers: what two of them must have in common to change rows alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from ._frozen import Frozen

NAMES = ("method", "site")  # of the facts of a file, those that change no row


def digest_of_eraser(eraser: Frozen) -> str:
    """Return the SHA-256 of all that decides what an eraser does to rows: its tensors to the bit, and its options.

    >>> import torch
    >>> from leace_fast import Eraser
    >>> one, two = (Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1], method=method) for method in ("leace", "custom"))
    >>> other = Eraser(torch.eye(4)[:, 1:2], torch.eye(4)[1:2])
    >>> digest_of_eraser(one) == digest_of_eraser(two) != digest_of_eraser(other)
    True
    """
    sha = hashlib.sha256()
    facts = {name: value for name, value in eraser._facts().items() if name not in NAMES}
    sha.update(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(eraser._tensors().items()):
        part = tensor.detach().cpu().contiguous()
        sha.update(f" {name} {part.dtype} {tuple(part.shape)} ".encode())
        sha.update(part.numpy().tobytes())
    return sha.hexdigest()


def digest_of_erasers(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 of the digests of erasers by site, in whatever order they come."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
