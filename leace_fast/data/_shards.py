"""Activation shards: files of rows x (rows, dim) with a class y (rows,) each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..statistics import IGNORE
from ._classes import as_classes

CHUNK = 16384  # rows
SHARD_SUFFIXES = (".safetensors", ".npz", ".npy")
EXPECTED = (
    "expected .safetensors or .npz files that hold x (rows, dim) and y (rows,), "
    "or .npy files in pairs: x.npy with y.npy, NAME.x.npy with NAME.y.npy"
)


class Shards:
    """The shards at a path, one file or a folder, read in chunks of rows and never held whole.

    Labels may be integers, booleans or strings; classes are numbered in sorted
    order over all shards. -100 leaves a row out.

    Args:
        path: a `.safetensors`, `.npz` or `.npy` file, or a folder of them.

    Raises:
        FileNotFoundError: there is no such file, no shard in the folder, or no labels beside a `.npy` file.
        ValueError: a shard lacks x or y, cannot be read, has another width, or labels that are not classes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/0.npz", x=np.zeros((3, 4), np.float32), y=["he", "she", "he"])
    ...     shards = Shards(folder)
    ...     [(x.shape, y.tolist()) for x, y in shards], shards.class_names
    ([(torch.Size([3, 4]), [0, 1, 0])], ('he', 'she'))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.files = _shard_files(Path(path))
        self.dim, self.rows = 0, 0
        found: set[Any] = set()
        for file in self.files:
            rows, dim, y = _describe(file)
            if self.dim and dim != self.dim:
                raise ValueError(f"{file} has rows of width {dim}, expected {self.dim} as in {self.files[0]}")
            self.dim, self.rows = dim, self.rows + rows
            found.update(np.unique(y).tolist())
        classes = sorted(found - {IGNORE}, key=lambda value: (str(type(value)), value))
        _, self.class_names = as_classes(classes, f"y of {path}")
        self._classes = np.array(classes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) chunks: x (rows, dim) in the file's dtype, y (rows,) int64 classes, -100 where left out."""
        for file in self.files:
            x, y = _open(file)
            numbers = np.where(y == IGNORE, IGNORE, np.searchsorted(self._classes, y))
            labels = torch.from_numpy(numbers.astype(np.int64))
            for at in range(0, len(y), CHUNK):
                piece = x[at : at + CHUNK]
                # A copy: a memory-mapped file is read-only, which torch does not know.
                yield piece if isinstance(piece, Tensor) else torch.from_numpy(np.array(piece)), labels[at : at + CHUNK]

    def __len__(self) -> int:
        """Return the number of chunks."""
        return sum(-(-_describe(file)[0] // CHUNK) for file in self.files)


def _shard_files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in SHARD_SUFFIXES and not _is_labels(p))
        if not found:
            raise FileNotFoundError(f"no activation shards in the folder {path}, {EXPECTED}")
        return found
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}, {EXPECTED}")
    if path.suffix not in SHARD_SUFFIXES:
        raise ValueError(f"{path} is of an unknown kind, {EXPECTED}")
    return [path]


def _is_labels(path: Path) -> bool:
    return path.name == "y.npy" or path.name.endswith(".y.npy")


def _labels_of(path: Path) -> Path:
    if path.name != "x.npy" and not path.name.endswith(".x.npy"):
        raise ValueError(f"{path} says neither that it holds x nor y, {EXPECTED}")
    return path.with_name(path.name[: -len("x.npy")] + "y.npy")


def _describe(path: Path) -> tuple[int, int, np.ndarray]:
    """Return the rows, the width and the labels of one shard, after checking that they fit."""
    x, y = _open(path)
    shape, kind = (tuple(x.get_shape()), x.get_dtype()) if hasattr(x, "get_shape") else (x.shape, x.dtype)
    if len(shape) != 2:
        raise ValueError(f"x of {path} has shape {shape}, expected (rows, dim)")
    if str(kind)[0] not in "fFB" or str(kind) == "BOOL":
        raise ValueError(f"x of {path} holds {kind}, expected floating-point numbers")
    if y.shape != shape[:1]:
        raise ValueError(f"y of {path} has shape {y.shape}, expected {shape[:1]}: one label for each row of x")
    if y.dtype.kind not in "iubU":
        raise ValueError(f"y of {path} holds {y.dtype}, expected classes: integers, booleans or strings")
    return shape[0], shape[1], y


def _open(path: Path) -> tuple[Any, np.ndarray]:
    """Return x, as something that is read by slices, and y of one shard."""
    if path.suffix == ".npy" and not _labels_of(path).exists():
        raise FileNotFoundError(f"{path} has no labels beside it: no file {_labels_of(path)}, {EXPECTED}")
    try:
        found = _READERS[path.suffix](path)
    except (SafetensorError, BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}), {EXPECTED}") from error
    for name in ("x", "y"):
        if name not in found:
            raise ValueError(f"{path} holds {', '.join(found) or 'nothing'} but no {name}, {EXPECTED}")
    return found["x"], np.asarray(found["y"])


def _read_safetensors(path: Path) -> dict[str, Any]:
    file = safe_open(path, framework="pt")
    names = list(file.keys())
    return {name: file.get_slice(name) if name == "x" else file.get_tensor(name) for name in names}


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _read_npy(path: Path) -> dict[str, Any]:
    x = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"x": x, "y": np.load(_labels_of(path), allow_pickle=False)}


_READERS = {".safetensors": _read_safetensors, ".npz": _read_npz, ".npy": _read_npy}
