"""Arrays in .npy and .npz files, whose headers are held against the bytes that are there before any are allocated."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

import numpy as np

# What a compressed file may expand to: so many times its length, and some megabytes in any case.
MOST_TIMES, MOST_ANYWAY = 256, 2**26


class Rows:
    """Rows of an array in a .npz file, read from the front by slices and never held whole."""

    def __init__(self, path: Path, member: ZipInfo, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.member, self.shape, self.dtype = path, member, shape, dtype
        self._file: IO[bytes] | None = None
        self._at = 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        begin, end, _ = rows.indices(self.shape[0])
        count = math.prod(self.shape[1:]) * self.dtype.itemsize
        check_expanded(self.path, (end - begin) * count)
        if self._file is None or begin != self._at:
            self._file = ZipFile(self.path).open(self.member)  # noqa: SIM115
            header_of(self._file)
            for _ in range(begin):
                _exactly(self._file, count, self.path)
        data = _exactly(self._file, (end - begin) * count, self.path)
        self._at = end
        return np.frombuffer(data, self.dtype).reshape(end - begin, *self.shape[1:])


def read_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of a .npz file; `x` as something that is read by slices.

    Raises:
        ValueError: a header does not fit its bytes, an array holds objects, or it expands beyond measure.
        OSError, BadZipFile: it cannot be read.
    """
    found: dict[str, Any] = {}
    with ZipFile(path) as file:
        for member in file.infolist():
            name = member.filename.removesuffix(".npy")
            found[name] = None
            if name not in ("x", "y", "groups"):
                continue
            with file.open(member) as stream:
                shape, by_columns, dtype = header_of(stream)
                size = math.prod(shape) * dtype.itemsize
                if size != member.file_size - stream.tell():
                    raise ValueError(f"{name} has {member.file_size - stream.tell()} bytes, its header says {size}")
                if name == "x" and len(shape) == 2 and not by_columns:
                    found[name] = Rows(path, member, shape, dtype)
                    continue
                check_expanded(path, size)
                flat = np.frombuffer(_exactly(stream, size, path), dtype)
                found[name] = flat.reshape(shape, order="F" if by_columns else "C")
    return found


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file, mapped into memory.

    Raises:
        ValueError: its header does not fit its bytes, or it holds objects.
    """
    with path.open("rb") as file:
        shape, by_columns, dtype = header_of(file)
        begin, size = file.tell(), math.prod(shape) * dtype.itemsize
        there = os.fstat(file.fileno()).st_size - begin
    if size != there:
        raise ValueError(f"it has {there} bytes after its header, which says {size}")
    order = "F" if by_columns else "C"
    return np.memmap(path, dtype, "r", begin, shape, order) if size else np.empty(shape, dtype, order)  # type: ignore[call-overload]


def header_of(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether it lies by columns, and dtype of the array that begins here, and go to its numbers."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it is of version {version} of the format, expected 1.0 or 2.0")
    try:
        shape, by_columns, dtype = readers[version](file)
    except Exception as error:  # Python's own parser reads it, and raises many things
        raise ValueError(f"its header cannot be read ({error!r})") from None
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"it holds {dtype}, expected numbers or strings")
    if any(isinstance(size, bool) or not 0 <= size < 2**62 for size in shape):
        raise ValueError(f"it has shape {shape}, expected sizes of 0 or more")
    if not math.prod(shape) and max(shape, default=0) > 2**31:
        raise ValueError(f"it has shape {shape} and holds nothing")
    return shape, by_columns, dtype


def check_expanded(path: Path, size: int) -> None:
    """Raise ValueError where a compressed file would become so many times larger in memory that it means harm."""
    most = max(MOST_ANYWAY, MOST_TIMES * path.stat().st_size)
    if size > most:
        raise ValueError(f"{path} would take {size:,} bytes of memory, at most {most:,} are allowed: save it in parts")


def _exactly(file: IO[bytes], size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{path} ends early")
    return data
