"""A folder written anew in one step: whenever that stops, the older one is there or the newer one, whole."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ._files import flush_folder, left_of, remove_folder

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


@contextmanager
def in_place_of(folder: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """A new folder to write in, which takes the place of `folder` in one step when the block ends without an error.

    What the older folder holds besides goes along. Where two folders cannot be exchanged (a mount point, the working
    directory, other systems than Linux), each file takes its place in a step of its own.

    Args:
        folder: made if it does not exist.
        last: the file without which a reader takes none of the others; of such steps it is the last one.

    Raises:
        OSError: it cannot be written to; it is as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with in_place_of(f"{parent}/new", "index") as folder:
    ...         _ = (folder / "index").write_text("all of it")
    ...     (Path(parent) / "new" / "index").read_text()
    'all of it'
    """
    place = Path(os.path.realpath(folder))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder or nothing: name another")
    for around in (place.parent, place):
        with suppress(OSError):
            for path in around.iterdir():
                if path.is_dir() and left_of(path.name) == place.name:
                    remove_folder(path)
    new = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        new.mkdir()
    except OSError:
        if not place.is_dir():
            raise
        new = place / f".{place.name}.{secrets.token_hex(4)}"  # the folder can be written to, that around it cannot
        new.mkdir()
    try:
        yield new
        _flush(new)
        if not place.exists():
            new.rename(place)
        elif new.parent == place or not _exchanged(new, place):
            _moved(new, place, last)
        flush_folder(place.parent)
    finally:
        remove_folder(new)  # what was not finished, or the older one


def _exchanged(new: Path, old: Path) -> bool:
    """Exchange two folders in one step; False where that cannot be, and nothing has changed."""
    if sys.platform != "linux" or os.path.ismount(old) or Path.cwd().is_relative_to(old):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    try:
        _carry(old, new)
        shutil.copymode(old, new)
    except OSError:  # no links to files here
        return False
    return rename(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0


def _carry(old: Path, new: Path) -> None:
    """Link into a new folder what an older one holds besides."""
    for path in old.iterdir():
        to = new / path.name
        if path.is_dir() and not path.is_symlink():
            to.mkdir(exist_ok=True)
            _carry(path, to)
        elif not to.exists() and not to.is_symlink():
            os.link(path, to, follow_symlinks=False)


def _moved(new: Path, old: Path, last: str) -> None:
    """Move the files of a new folder into an older one, one by one, the last one last."""
    files = sorted((path for path in new.rglob("*") if not path.is_dir()), key=lambda path: path == new / last)
    for path in files:
        to = old / path.relative_to(new)
        to.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, to)


def _flush(folder: Path) -> None:
    """Flush a folder and all in it to disk."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)
        elif not path.is_symlink():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
