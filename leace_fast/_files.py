"""Files: safetensors with a checksum over everything, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT_VERSION = 1
KEY = "leace_fast"
BLANK_DIGEST = "0" * 64  # stands in the digest's place while the file is hashed
DIGEST_MARK = b'"sha256":"'
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def save_tensors(path: str | os.PathLike[str], kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically.

    A crash leaves the old file or the new one. A SHA-256 over the whole file
    goes with it.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format_version": FORMAT_VERSION, "kind": kind, **header}, sort_keys=True)
    data = _ordered(save(kept, metadata={KEY: text, "sha256": BLANK_DIGEST}))
    write_bytes(path, _with_digest(data, hashlib.sha256(data).hexdigest()))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: beside its place, flushed to disk, renamed, its folder flushed too."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path.name}: make it first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, NEW_FILE, 0o666), "wb") as file:  # less what the umask takes, as any file
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name != "posix":
        return  # folders cannot be flushed elsewhere
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the header of a file that `save_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or of a later format.
    """
    data = Path(path).read_bytes()
    try:
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        text, digest = metadata[KEY], metadata["sha256"]
        if hashlib.sha256(_with_digest(data, BLANK_DIGEST)).hexdigest() != digest:
            raise ValueError("its checksum does not fit its content")
        tensors, header = load(data), json.loads(text)
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or no file of leace-fast ({error}): write it again, or fetch it again"
        ) from error
    if header["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {header['format_version']}, this release reads up to {FORMAT_VERSION}: "
            "update leace-fast"
        )
    if header["kind"] != kind:
        raise ValueError(f"{path} holds {header['kind']!r}, expected {kind!r}: load it with the class that wrote it")
    return tensors, header


def _ordered(data: bytes) -> bytes:
    """Return a file's bytes with the entries of its header in order: safetensors writes them in any."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # keeps the tensors aligned
    return len(header).to_bytes(8, "little") + header + data[end:]


def _with_digest(data: bytes, digest: str) -> bytes:
    """Return a file's bytes with another digest in its place."""
    begin = data.index(DIGEST_MARK) + len(DIGEST_MARK)
    return data[:begin] + digest.encode() + data[begin + len(digest) :]
