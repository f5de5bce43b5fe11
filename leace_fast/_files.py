"""Files: safetensors with a checksum over everything, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ._schema import ANYTHING, DIGEST, TEXT, Layout, check_fields, dump_json, integer, layouts_of, parse_json

Check = Callable[[Mapping[str, Any], Mapping[str, Layout]], None]
FORMAT_VERSION = 1
KEY = "leace_fast"
METADATA = "__metadata__"
BLANK_DIGEST = "0" * 64  # stands in the digest's place while the file is hashed
DIGEST_MARK = b'"sha256":"'
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def save_tensors(path: str | os.PathLike[str], kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically.

    A crash leaves the old file or the new one. A SHA-256 over the whole file
    goes with it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the header holds NaN, or text that is no Unicode.
    """
    write_bytes(path, tensor_bytes(kind, tensors, header))


def tensor_bytes(kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    """Return the bytes of such a file."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = dump_json({"format_version": FORMAT_VERSION, "kind": kind, **header}, sort_keys=True)
    data = ordered(save(kept, metadata={KEY: text, "sha256": BLANK_DIGEST}))
    return _with_digest(data, hashlib.sha256(data).hexdigest())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: beside its place, flushed to disk, renamed, its folder flushed too."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path.name}: make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file: name one inside it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file, and saving would take its place: name another")
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
    flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Flush to disk which names a folder holds; elsewhere than on POSIX systems that cannot be done."""
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder and all in it, as far as that can be; links are removed, what they lead to stays.

    `shutil.rmtree` closes a file descriptor twice where Ctrl-C comes between the two, and raises OSError then.
    """
    if os.path.islink(path):
        return
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            _try(os.unlink, os.path.join(folder, name))
        for name in folders:
            inner = os.path.join(folder, name)
            _try(os.unlink if os.path.islink(inner) else os.rmdir, inner)
    _try(os.rmdir, path)


def _try(remove: Callable[[Any], None], path: str | os.PathLike[str]) -> None:
    with suppress(OSError):
        remove(path)


def left_of(name: str) -> str:
    """Return the name of the file of which `write_bytes` left one of this name when it was killed; "" for others."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}", name)
    return found[1] if found else ""


def load_tensors(
    path: str | os.PathLike[str], kind: str, check: Check | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the header of a file that `save_tensors` wrote.

    Args:
        path: of the file.
        kind: what it is to hold.
        check: raises ValueError unless a header and the layouts of tensors are of that kind; no tensor is made before.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, of a later format, or refused by `check`.
    """
    return read_tensors(read_bytes(path), path, kind, check)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is a device or a pipe, which has no length.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}: check the path, or write it first") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path} is no regular file: copy it to one first")
    return path.read_bytes()


def read_tensors(
    data: bytes, path: str | os.PathLike[str], kind: str, check: Check | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Do what `load_tensors` does, with the bytes of the file at `path`."""
    try:
        header, layouts = _opened(data)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged or no file of leace-fast ({error}): write it again, or fetch it again"
        ) from error
    check_version(path, header["format_version"])
    if header["kind"] != kind:
        raise ValueError(f"{path} holds {header['kind']!r}, expected {kind!r}: load it with the class that wrote it")
    try:
        if check is not None:
            check(header, layouts)
        return load(data), header
    except (SafetensorError, ValueError) as error:
        raise unreadable(path, kind, error) from error


def check_version(path: str | os.PathLike[str], version: int) -> None:
    """Raise ValueError for a format that only later releases read."""
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this release reads up to {FORMAT_VERSION}: update leace-fast"
        )


def unreadable(path: str | os.PathLike[str], kind: str, error: Exception) -> ValueError:
    """Return what is raised for a file that is whole and yet none of its kind."""
    return ValueError(f"{path} holds no {kind} that can be read: {error}")


def _opened(data: bytes) -> tuple[dict[str, Any], dict[str, Layout]]:
    """Return the header and the layouts of the tensors of a file; ValueError where they are not what was written."""
    end = 8 + int.from_bytes(data[:8], "little")
    if not 8 < end <= len(data):
        raise ValueError(f"its header has {end - 8} bytes, the file {len(data)}")
    entries = parse_json(data[8:end])
    check_fields(entries, {METADATA: ANYTHING})
    metadata = entries.pop(METADATA)
    check_fields(metadata, {KEY: TEXT, "sha256": DIGEST})
    if hashlib.sha256(_with_digest(data, BLANK_DIGEST)).hexdigest() != metadata["sha256"]:
        raise ValueError("its checksum does not fit its content")
    header = parse_json(metadata[KEY])
    check_fields(header, {"format_version": integer(1), "kind": TEXT})
    return header, layouts_of(entries, len(data) - end)


def ordered(data: bytes) -> bytes:
    """Return a file's bytes with the entries of its header in order: safetensors writes them in any."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # keeps the tensors aligned
    return len(header).to_bytes(8, "little") + header + data[end:]


def _with_digest(data: bytes, digest: str) -> bytes:
    """Return a file's bytes with another digest in its place."""
    begin = data.index(DIGEST_MARK) + len(DIGEST_MARK)
    return data[:begin] + digest.encode() + data[begin + len(digest) :]
