"""Files that belong together in one folder: whenever a save stops, the older ones or the newer ones are there, whole.

An index names each file and its SHA-256. New files are written beside the old ones, under names that end in a part of
their digest and `.new`; then the new index takes the place of the old one, in one rename, and from there on the new
files count; last they are renamed. So a reader takes a file under either name, by its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .._files import flush_folder, left_of, read_bytes, write_bytes

NEW = re.compile(r"(.+)\.[0-9a-f]{16}\.new")


def digest_of(data: bytes) -> str:
    """The SHA-256 of a file's bytes, as an index names it."""
    return hashlib.sha256(data).hexdigest()


def digest_of_index(index: Mapping[str, Any]) -> str:
    """The SHA-256 of an index, whatever the order of its fields."""
    return digest_of(json.dumps(index, sort_keys=True).encode())


def write_together(
    folder: Path, files: Mapping[str, bytes], index: tuple[str, bytes], before: Mapping[str, str]
) -> None:
    """Write files and their index in the place of older ones; what else the folder holds stays.

    Args:
        folder: which exists.
        files: content by name.
        index: its name and content.
        before: the files of the index that is there, their digests by name; none where there is no index.

    Raises:
        OSError: the folder cannot be written to; the older files are as they were.
    """
    name_of_index, content = index
    new = {name: _beside(folder / name, digest_of(data)) for name, data in files.items()}
    kept = {_beside(folder / name, digest) for name, digest in before.items()}
    try:
        for name, data in files.items():
            write_bytes(new[name], data)
        write_bytes(folder / name_of_index, content)
    except BaseException:
        if not _holds(folder / name_of_index, digest_of(content)):  # else the new files count already
            for path in {*new.values()} - kept:
                path.unlink(missing_ok=True)
        raise
    for name, path in new.items():
        os.replace(path, folder / name)
    for name, digest in before.items():
        if name not in files and _holds(folder / name, digest):
            (folder / name).unlink()
    _clear(folder, {*files, *before, name_of_index})
    flush_folder(folder)


def read_member(folder: Path, name: str, digest: str, index: str) -> bytes:
    """The bytes of a file that an index names, if they are those of this save.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged or of another save.
    """
    path = folder / name
    found = False
    for each in (path, _beside(path, digest)):
        if each.is_file():
            found, data = True, read_bytes(each)
            if digest_of(data) == digest:
                return data
    if not found:
        raise FileNotFoundError(f"{path} is missing, which {index} names: fetch the whole folder again")
    raise ValueError(f"{path} is damaged or of another save than {index}: write the folder again")


def _beside(path: Path, digest: str) -> Path:
    return path.with_name(f"{path.name}.{digest[:16]}.new")


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and digest_of(path.read_bytes()) == digest


def _clear(folder: Path, names: Iterable[str]) -> None:
    """Remove what saves that were killed have left of files of these names."""
    names = set(names)
    for path in folder.iterdir():
        new = NEW.fullmatch(path.name) or NEW.fullmatch(left_of(path.name))
        if (new[1] if new else left_of(path.name)) in names:
            path.unlink(missing_ok=True)
