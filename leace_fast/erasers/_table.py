"""`EraserTable`: several erasers of one width in one call, chosen row by row, exchanged while others run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from .._ops import device_here, project, project_
from ._arguments import Rows, changed, destination, tensor_of
from ._eraser import Eraser
from ._stack import read, split, write

NONE = -1  # the index of a row that no eraser acts on


class EraserTable:
    """A stack of erasers of one width, for batches whose rows belong to different requests.

    A row's result does not depend on the rows beside it or on their number; rows of index -1 come out with the
    same bits. Erasers of lower rank are padded with zeros. The table is no module: a model's dtype and device
    never reach its factors.

    Args:
        erasers: at least one, all of one width; the index of a row is a position in this sequence.
        device: where the rows are; that of the first eraser if None.
        dtype: torch.float64 for float64 rows, torch.float32 for all others.
        rank: the highest rank that `swap` may bring; the highest one given if None.

    Raises:
        TypeError: an entry is no `Eraser`.
        ValueError: no eraser, erasers of several widths or above `rank`, another dtype.

    Source: docs/serving.md; each row as in Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 1.

    >>> eye = torch.eye(3)
    >>> table = EraserTable([Eraser(eye[:, :1], eye[:1]), Eraser(eye[:, 1:], eye[1:])])
    >>> table(torch.ones(3, 3), torch.tensor([0, -1, 1])).tolist()
    [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        erasers: Sequence[Eraser],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        rank: int | None = None,
    ) -> None:
        erasers = list(erasers)
        for eraser in erasers:
            _check_type(eraser)
        if not erasers:
            raise ValueError("a table needs at least one eraser, got none")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}, expected torch.float32, or torch.float64 for float64 rows")
        self.dim, self.dtype = erasers[0].dim, dtype
        self.rank = max(eraser.rank for eraser in erasers) if rank is None else rank
        self.device = device_here(erasers[0].device if device is None else device)
        self._count = len(erasers)
        self._writing = threading.Lock()
        self._static = self._keeps_memory()
        for eraser in erasers:
            self._check_fits(eraser)

        # In static memory each eraser has two places, and after them comes one for the rows of unknown index.
        places = 2 * len(erasers) + 1 if self._static else len(erasers)
        self._memory = torch.zeros(places * (2 * self.rank + 1) * self.dim, device=self.device, dtype=dtype)
        self._views = split(self._memory, self.rank, self.dim)
        for place, eraser in enumerate(erasers):
            write(self._views, place, eraser)
        if self._static:
            self._views[2][-1] = torch.nan
            self._places = torch.arange(-1, len(erasers), device=self.device)  # by index + 1
            self._unknown = torch.zeros((), dtype=torch.int64, device=self.device)

    def __getstate__(self) -> dict[str, Any]:
        # a lock cannot be copied, and views of the memory would come back as memory of their own
        return {name: part for name, part in vars(self).items() if name not in ("_writing", "_views")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _writing=threading.Lock())
        self._views = split(self._memory, self.rank, self.dim)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"EraserTable({len(self)} erasers, rank {self.rank} of {self.dim}, {self.dtype}, {self.device})"

    def __call__(self, x: Rows, index: Tensor | numpy.ndarray | int) -> Rows:
        """Return the rows x (..., d), each erased by the eraser of its index.

        Args:
            x: (..., d), floating, a tensor or an array of NumPy, which gives an array.
            index: integers of the leading shape of x, or of the first dimensions of it (one for each sequence);
                -1 leaves rows as they are.

        Raises:
            IndexError: an index names no eraser. On CUDA, where looking would wait for the device, those rows
                come out as NaN, and `check` raises.
            TypeError: x is not floating, or index is not of integers.
            ValueError: a shape or device does not fit.
        """
        if not isinstance(x, Tensor):
            return self(tensor_of(x), index).numpy()
        left, right, mean, places = self._factors(x, index)
        return project(x, left, right, mean, places)

    def apply_(self, x: Rows, index: Tensor | numpy.ndarray | int) -> Rows:
        """Erase rows in place and return x.

        Args:
            x: (..., d), floating, a tensor or a writable array of NumPy.
            index: as in a call.

        Raises:
            IndexError, TypeError: as in a call.
            ValueError: as in a call, or x is a read-only array.

        Source: docs/serving.md.

        >>> table, x = EraserTable([Eraser(torch.eye(2)[:, :1], torch.eye(2)[:1])]), torch.ones(2, 2)
        >>> table.apply_(x, torch.tensor([-1, 0])) is x, x.tolist()
        (True, [[1.0, 1.0], [0.0, 1.0]])
        """
        if not isinstance(x, Tensor):
            return changed(x, lambda rows: self.apply_(rows, index))
        left, right, mean, places = self._factors(x, index)
        return project_(x, left, right, mean, places)

    def swap(self, i: int, eraser: Eraser) -> None:
        """Put another eraser in the place of eraser i, between calls: no result mixes the two.

        On CUDA nothing moves: captured graphs use the new eraser from their next replay on. The new factors are
        written beside the old ones once all work that was queued before has ended; then one number is changed. On
        the CPU they go into a copy of the stack: calls that run keep the old one.

        Args:
            i: the place, 0 to the number of erasers less one.
            eraser: of the table's width, and of its rank at most.

        Raises:
            IndexError: there is no eraser i, or a call met an unknown index before, as in `check`.
            TypeError: `eraser` is no `Eraser`.
            ValueError: it has another width than the table, or a higher rank.

        Source: docs/serving.md.

        >>> eye = torch.eye(2)
        >>> table = EraserTable([Eraser(eye[:, :1], eye[:1])])
        >>> table.swap(0, Eraser(eye[:, 1:], eye[1:]))
        >>> table(torch.ones(2), 0)
        tensor([1., 0.])
        """
        if not 0 <= i < len(self):
            raise IndexError(f"the table has erasers 0 to {len(self) - 1}, got {i}")
        _check_type(eraser)
        self._check_fits(eraser)
        with self._writing, torch.inference_mode(False), torch.no_grad():
            if not self._static:
                memory = self._memory.clone()
                views = split(memory, self.rank, self.dim)
                write(views, i, eraser)
                self._memory = memory
                self._views = views  # one assignment: a call reads this attribute once
                return
            self.check()
            active = int(self._places[i + 1])
            other = (active + len(self)) % (2 * len(self))
            self._synchronize()  # what was queued before the last swap of this eraser may still read the other place
            write(self._views, other, eraser)
            self._places[i + 1] = other

    def to(
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> EraserTable:
        """Return a table of the same erasers on a device and in float32 or float64; either may come first.

        Args:
            device: where to; None for where the table is.
            dtype: torch.float64 for float64 rows, torch.float32 for all others; None leaves it as it is.

        Raises:
            ValueError: dtype is another: factors are never rounded further, whatever dtype x has.

        Source: the call of `torch.Tensor.to`.

        >>> EraserTable([Eraser(torch.eye(2)[:, :1], torch.eye(2)[:1])]).to(torch.float64).dtype
        torch.float64
        """
        device, dtype = destination(device, dtype)
        with self._writing:
            views, places = self._views, self._places[1:].tolist() if self._static else range(len(self))
            erasers = [read(views, place) for place in places]
        return EraserTable(erasers, self.device if device is None else device, dtype or self.dtype, self.rank)

    def check(self) -> None:
        """Look whether a call has met an unknown index since the last check; this waits for the device.

        Raises:
            IndexError: one has, on a device where the call itself did not wait to look; its rows came out as NaN.

        Source: docs/serving.md.

        >>> EraserTable([Eraser(torch.eye(2)[:, :1], torch.eye(2)[:1])]).check()
        """
        if self._static and (unknown := int(self._unknown)):
            self._unknown.zero_()
            raise IndexError(
                f"{unknown} rows had an index outside -1 to {len(self) - 1} since the last check; they came out as NaN"
            )

    def _factors(self, x: Tensor, index: Tensor | numpy.ndarray | int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if isinstance(index, numpy.ndarray):
            index = tensor_of(index)
        elif not isinstance(index, Tensor):
            index = torch.tensor(index, device=x.device)
        if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise TypeError(f"index has dtype {index.dtype}, expected integers: the eraser of each row, -1 for none")
        if index.ndim >= x.ndim or any(n not in (1, m) for n, m in zip(index.shape, x.shape, strict=False)):
            raise ValueError(
                f"index has shape {tuple(index.shape)}, expected the leading dimensions of x {tuple(x.shape)}"
            )
        if x.device != self.device or index.device != self.device:
            raise ValueError(f"x is on {x.device}, index on {index.device}, the table on {self.device}")
        index = index.to(torch.int64)
        if self._static:
            index = self._place_of(index)
        if index.shape != x.shape[:-1]:
            index = index.reshape(*index.shape, *(1,) * (x.ndim - 1 - index.ndim)).expand(x.shape[:-1])
        return *self._views, index

    def _place_of(self, index: Tensor) -> Tensor:
        # Each entry is read once, so that all rows of one eraser take the same place while another stream swaps.
        places = self._places.clone()
        unknown = (index < NONE) | (index >= len(self))
        self._unknown += unknown.sum()
        return places[index.clamp(NONE, len(self) - 1) + 1].masked_fill(unknown, 2 * len(self))

    def _check_fits(self, eraser: Eraser) -> None:
        if eraser.dim != self.dim or eraser.rank > self.rank:
            raise ValueError(
                f"got an eraser of rank {eraser.rank} for width {eraser.dim}, the table is for rank {self.rank} at "
                f"most and width {self.dim}" + ("" if eraser.dim != self.dim else ": make it with a higher rank=")
            )

    def _keeps_memory(self) -> bool:
        """Whether swaps must leave the factors where they are, as captured graphs need it."""
        return self.device.type != "cpu"

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _check_type(eraser: object) -> None:
    if not isinstance(eraser, Eraser):
        raise TypeError(f"got a {type(eraser).__name__}, expected an Eraser")
