"""`Buffer`: tensors that wait, in memory as far as a budget allows and in a temporary file beyond it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
ALIGNMENT = 64  # bytes
DEVICE_SHARE = 0.5  # of a device's free memory, at most: the model itself needs the rest


def parse_size(size: int | str) -> int:
    """The number of bytes that a size such as `"8GiB"`, `"500 MB"` or `2**30` stands for.

    Raises:
        TypeError: size is neither an integer nor a string.
        ValueError: it is negative or names no size.

    >>> parse_size("8GiB") == 8 * 2**30, parse_size("1.5 kB"), parse_size(100)
    (True, 1500, 100)
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f'a size is {size!r} ({type(size).__name__}), expected bytes or a string such as "8GiB"')
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"a size is {size} bytes, expected 0 or more")
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]i?)?b?\s*", size.lower())
    if not found:
        raise ValueError(f'{size!r} is no size, expected bytes or a string such as "8GiB", "500MB" or "64kB"')
    return int(float(found[1]) * UNITS[found[2] or ""])


class Buffer:
    """Tensors that wait: on their own device while it has room, then in host memory, then in a temporary file.

    The file lies in the folder for temporary files (the environment's TMPDIR names another), has no name once it is
    open, and vanishes with the buffer.

    Args:
        budget: bytes that may be held in memory, or a string such as "8GiB".

    >>> with Buffer("1kB") as buffer:
    ...     slots = [buffer.put(torch.full((112,), float(i))) for i in range(4)]
    ...     [slot.get()[0].item() for slot in slots], buffer.in_memory, buffer.in_file
    ([0.0, 1.0, 2.0, 3.0], 896, 896)
    """

    def __init__(self, budget: int | str = "8GiB") -> None:
        self.budget = parse_size(budget)
        self.in_memory = 0  # bytes
        self._file: Any = None
        self._end = 0
        self._free: dict[int, list[int]] = defaultdict(list)  # offsets of regions that are free again, by their size

    @property
    def in_file(self) -> int:
        """Bytes that the file holds or has held."""
        return self._end

    def __enter__(self) -> Buffer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; slots in it cannot be read any more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def put(self, tensor: Tensor) -> Slot:
        """Store a copy of a tensor; what an axis of stride 0 repeats is stored once.

        Raises:
            OSError: the temporary file has no room for it, or cannot be made; its folder is named.
        """
        small = tensor.detach()[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]
        slot = Slot(self, tensor.shape, small.shape, tensor.dtype, tensor.device)
        if self.in_memory + slot.bytes <= self.budget:
            device = tensor.device if self._has_room(tensor.device, slot.bytes) else torch.device("cpu")
            slot.kept = small.to(device, copy=True, memory_format=torch.contiguous_format)
            self.in_memory += slot.bytes
        else:
            size = -(-slot.bytes // ALIGNMENT) * ALIGNMENT
            free = self._free[size]
            if not free:
                free.append(self._grow(size))
            self._write(free[-1], small)
            slot.offset = free.pop()
        return slot

    def _has_room(self, device: torch.device, size: int) -> bool:
        if device.type != "cuda":
            return True
        return size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]

    def _grow(self, size: int) -> int:
        """Reserve bytes at the end of the file: what lies there can then be written, however full the disk becomes."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="leace-fast-", buffering=0)  # noqa: SIM115
        with self._naming_the_folder():
            if reserve := getattr(os, "posix_fallocate", None):
                reserve(self._file.fileno(), self._end, size)
            else:
                self._transfer(self._file.write, self._end, memoryview(bytes(size)))
        offset, self._end = self._end, self._end + size
        return offset

    def _write(self, offset: int, tensor: Tensor) -> None:
        data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        with self._naming_the_folder():
            self._transfer(self._file.write, offset, data.data)

    def _read(self, offset: int, size: int) -> np.ndarray:
        assert self._file is not None, "the buffer is closed"
        data = np.empty(size, np.uint8)
        with self._naming_the_folder():
            self._transfer(self._file.readinto, offset, data.data)
        return data

    # Not mapped into memory: where a disk fails or fills up, a mapping kills the process instead of raising.
    def _transfer(self, step: Callable[[memoryview], int | None], offset: int, data: memoryview) -> None:
        self._file.seek(offset)
        while len(data):
            done = step(data)
            if not done:
                raise OSError("the temporary file ended early")
            data = data[done:]

    @contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = (
                f"{error.strerror or error}: activations beyond the memory budget are kept in {tempfile.gettempdir()}"
            )
            raise OSError(error.errno, f"{what}, make room there, set TMPDIR, or give a larger buffer=") from error


class Slot:
    """One stored tensor of a `Buffer`."""

    def __init__(
        self, buffer: Buffer, shape: torch.Size, small: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.buffer, self.shape, self.small, self.dtype, self.device = buffer, shape, small, dtype, device
        self.bytes = small.numel() * dtype.itemsize
        self.kept: Tensor | None = None
        self.offset = -1

    def get(self) -> Tensor:
        """A fresh copy of the tensor, on its own device."""
        if self.kept is not None:
            tensor = self.kept.to(self.device, copy=True)
        else:
            data = self.buffer._read(self.offset, self.bytes)
            tensor = torch.from_numpy(data).view(self.dtype).reshape(self.small).to(self.device)
        return tensor.expand(self.shape)

    def drop(self) -> None:
        """Give its place back."""
        if self.kept is not None:
            self.kept = None
            self.buffer.in_memory -= self.bytes
        elif self.offset >= 0:
            self.buffer._free[-(-self.bytes // ALIGNMENT) * ALIGNMENT].append(self.offset)
            self.offset = -1


def give_back_memory() -> None:
    """Have glibc give the memory of freed tensors back to the system; nothing happens with other C libraries.

    It seldom uses a freed aligned block for an equal request: left alone, the holes grow with every pass.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
