"""Activation shards: files of rows x (rows, dim) with a class y (rows,) and, if they tell it, a group (rows,) each."""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from collections import Counter
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
from ._numpy_files import read_npy, read_npz

CHUNK = 16384  # rows
UNREADABLE = (
    SafetensorError,
    BadZipFile,
    EOFError,
    ValueError,
    TypeError,
    NotImplementedError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)
SHARD_SUFFIXES = (".safetensors", ".npz", ".npy")
FLOATS = ("F16", "BF16", "F32", "F64", "float16", "float32", "float64")  # as safetensors and NumPy call them
KINDS = {"i": "integers", "u": "integers", "b": "booleans", "U": "strings"}  # of labels and groups
NAMES = {"y": "classes: integers, booleans or strings", "groups": "integers or strings"}
EXPECTED = (
    "expected .safetensors or .npz files that hold x (rows, dim) and y (rows,), "
    "or .npy files in pairs: x.npy with y.npy, NAME.x.npy with NAME.y.npy"
)


class Shards:
    """The shards at a path, one file or a folder, read in chunks of rows and never held whole.

    Rows are floating-point numbers of 16, 32 or 64 bits, in any order of bytes. Labels may be integers, booleans or
    strings, of the same kind in all shards; classes are numbered in sorted order over all of them. -100 leaves a row
    out. Where all shards hold `groups` (rows,), integers or strings that say which text, speaker or document each row
    is of (beside `NAME.x.npy` the file `NAME.groups.npy`), these are numbered in the same way.

    Attributes:
        files: the shards, in order.
        dim: width of the rows.
        rows: how many there are.
        class_names: of the classes 0, 1, ...
        group_names: of the groups 0, 1, ...; empty where the shards have none.
        group_rows: how many rows each has.

    Args:
        path: a `.safetensors`, `.npz` or `.npy` file, or a folder of them.

    Raises:
        FileNotFoundError: there is no such file, no shard in the folder, or no labels beside a `.npy` file.
        ValueError: a shard lacks x or y, cannot be read, has another width, labels that are not classes, or groups that
            are none or that other shards lack.

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
        kinds: dict[str, Path] = {}  # of labels, with the first shard that holds them
        groups: Counter[Any] = Counter()
        with_groups: list[Path] = []
        for file in self.files:
            rows, dim, y, of = _describe(file)
            kinds.setdefault(KINDS[y.dtype.kind], file)
            if self.dim and dim != self.dim:
                raise ValueError(f"{file} has rows of width {dim}, expected {self.dim} as in {self.files[0]}")
            self.dim, self.rows = dim, self.rows + rows
            found.update(np.unique(y).tolist())
            if of is not None:
                names, counts = np.unique(of, return_counts=True)
                groups.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
                with_groups.append(file)
        if len(kinds) > 1:
            told = " and ".join(f"{kind} in {file}" for kind, file in kinds.items())
            raise ValueError(f"labels are {told}, expected the same kind in all shards")
        classes = sorted(found - {IGNORE}, key=_order)
        _, self.class_names = as_classes(classes, f"y of {path}")
        self._classes = np.array(classes)
        if with_groups and len(with_groups) < len(self.files):
            without = next(file for file in self.files if file not in with_groups)
            raise ValueError(
                f"{with_groups[0]} holds groups and {without} none, expected them in all shards or in none"
            )
        if len({type(group) for group in groups}) > 1:
            raise ValueError(f"groups of {path} are strings in some shards and numbers in others, expected one kind")
        self._groups = np.array(sorted(groups, key=_order))
        self.group_names = tuple(map(str, self._groups.tolist()))
        self.group_rows = tuple(groups[group] for group in self._groups.tolist())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y) chunks: x (rows, dim) in the file's dtype, y (rows,) int64 classes, -100 where left out."""
        for x, y, _ in self.chunks():
            yield x, y

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield (x, y, groups): x and y as in iterating, groups (rows,) int64, None where the shards have none.

        Raises:
            ValueError, FileNotFoundError: a shard cannot be read any more.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/0.npz", x=np.zeros((3, 4)), y=[0, 1, 0], groups=["ann", "ann", "bob"])
        ...     [groups.tolist() for _, _, groups in Shards(folder).chunks()]
        [[0, 0, 1]]
        """
        for file in self.files:
            x, y, of = _open(file)
            numbers = np.where(y == IGNORE, IGNORE, np.searchsorted(self._classes, y))
            labels = torch.from_numpy(numbers.astype(np.int64))
            groups = None if of is None else torch.from_numpy(np.searchsorted(self._groups, of).astype(np.int64))
            for at in range(0, len(y), CHUNK):
                try:
                    piece = x[at : at + CHUNK]
                except UNREADABLE as error:
                    raise ValueError(f"{file} cannot be read ({error}), {EXPECTED}") from error
                # A copy: a memory-mapped file is read-only, which torch does not know; nor does it know foreign bytes.
                rows = (
                    piece
                    if isinstance(piece, Tensor)
                    else torch.from_numpy(np.array(piece, _native(piece.dtype), order="C"))
                )
                yield rows, labels[at : at + CHUNK], None if groups is None else groups[at : at + CHUNK]

    def __len__(self) -> int:
        """Return the number of chunks."""
        return sum(-(-_describe(file)[0] // CHUNK) for file in self.files)


def _native(dtype: np.dtype) -> np.dtype:
    """The same numbers in the order of bytes of this machine."""
    return dtype.newbyteorder("=")


def _order(value: Any) -> tuple[str, Any]:
    return str(type(value)), value


def _shard_files(path: Path) -> list[Path]:
    if path.is_dir():
        # A name with a dot in front is hidden: archives of a Mac hold `._x.npz` beside each `x.npz`.
        shown = (p for p in path.iterdir() if not p.name.startswith(".") and p.is_file())
        found = sorted(p for p in shown if p.suffix in SHARD_SUFFIXES and not _is_beside(p))
        if not found:
            raise FileNotFoundError(f"no activation shards in the folder {path}, {EXPECTED}")
        return found
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}, {EXPECTED}")
    if path.suffix not in SHARD_SUFFIXES:
        raise ValueError(f"{path} is of an unknown kind, {EXPECTED}")
    return [path]


def _is_beside(path: Path) -> bool:
    """Whether a file holds the labels or groups of rows in another one."""
    return path.name in ("y.npy", "groups.npy") or path.name.endswith((".y.npy", ".groups.npy"))


def _beside(path: Path, name: str) -> Path:
    """The file of the labels, or the groups, of the rows in a .npy file."""
    if path.name != "x.npy" and not path.name.endswith(".x.npy"):
        raise ValueError(f"{path} says neither that it holds x nor y, {EXPECTED}")
    return path.with_name(f"{path.name[: -len('x.npy')]}{name}.npy")


def _describe(path: Path) -> tuple[int, int, np.ndarray, np.ndarray | None]:
    """Return the rows, the width, the labels and the groups of one shard, after checking that they fit."""
    x, y, groups = _open(path)
    shape, kind = (tuple(x.get_shape()), x.get_dtype()) if hasattr(x, "get_shape") else (x.shape, _native(x.dtype))
    if len(shape) != 2 or not shape[1]:
        raise ValueError(f"x of {path} has shape {shape}, expected (rows, dim), with a column at least")
    if str(kind) not in FLOATS:
        raise ValueError(f"x of {path} holds {kind}, expected floating-point numbers of 16, 32 or 64 bits")
    for name, values, what in (("y", y, "label"), ("groups", groups, "group")):
        if values is None:
            continue
        if values.shape != shape[:1]:
            raise ValueError(
                f"{name} of {path} has shape {values.shape}, expected {shape[:1]}: one {what} for each row of x"
            )
        if values.dtype.kind not in KINDS:
            raise ValueError(f"{name} of {path} holds {values.dtype}, expected {NAMES[name]}")
    if groups is not None and groups.dtype.kind == "U" and bool((groups == "").any()):
        raise ValueError(f"groups of {path} are empty for some rows, expected the group of each")
    return shape[0], shape[1], y, groups


def _open(path: Path) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """Return x, as something that is read by slices, y, and the groups or None, of one shard."""
    if path.suffix == ".npy" and not (labels := _beside(path, "y")).exists():
        raise FileNotFoundError(f"{path} has no labels beside it: no file {labels}, {EXPECTED}")
    try:
        found = _READERS[path.suffix](path)
    except (*UNREADABLE, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}), {EXPECTED}") from error
    for name in ("x", "y"):
        if name not in found:
            raise ValueError(f"{path} holds {', '.join(found) or 'nothing'} but no {name}, {EXPECTED}")
    for name, kinds in NAMES.items():
        values = found.get(name)
        if isinstance(values, Tensor) and (values.is_floating_point() or values.is_complex()):  # NumPy lacks some
            raise ValueError(f"{name} of {path} holds {values.dtype}, expected {kinds}")
    return found["x"], np.asarray(found["y"]), np.asarray(found["groups"]) if "groups" in found else None


def _read_safetensors(path: Path) -> dict[str, Any]:
    file = safe_open(path, framework="pt")
    found: dict[str, Any] = dict.fromkeys(file.keys())
    found |= {name: file.get_tensor(name) for name in ("y", "groups") if name in found}
    return found | ({"x": file.get_slice("x")} if "x" in found else {})


def _read_npy(path: Path) -> dict[str, Any]:
    files = {name: _beside(path, name) for name in ("y", "groups")}
    return {"x": read_npy(path)} | {name: read_npy(file) for name, file in files.items() if file.exists()}


_READERS = {".safetensors": _read_safetensors, ".npz": read_npz, ".npy": _read_npy}
