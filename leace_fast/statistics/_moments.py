"""`Moments`: the sufficient statistics of (x, labels), streamed in one pass, mergeable and removable."""

from __future__ import annotations

import os
from collections import Counter
from typing import Literal, get_args

import torch
from torch import Tensor

from .._files import load_tensors, save_tensors
from ._block_sums import relative_error
from ._derived import Derived
from ._device import DTYPES, DeviceRows, Precision, serves
from ._removal import without
from ._rows import IGNORE, Rows, check_kinds, check_rows
from ._state import State

# What only a device sees, by the name under which it is counted there.
MISTAKES = {
    "label": "had a label out of range, expected 0 to {most}, or {ignore} for rows to leave out",
    "mask": "had a mask other than 0 and 1, use weight= for weights",
    "weight": "had a weight that is not 0 nor 1e-30 to 1e30, only ratios of weights count",
}


class Moments(Derived):
    """Counts, class sums and second moment of labelled rows, in float64, from one pass over the data.

    Rows may come in batches of any size: they are gathered into blocks of a
    fixed size first, so that the bits of the result do not depend on how the
    stream was cut. Every tensor that is handed out is a copy.

    Args:
        dim: width of x.
        num_classes: number of classes k, for integer labels 0..k-1.
        target_dim: width of real-valued targets, instead of `num_classes`.
        per_class: keep the second moment of each class too, (k, d, d).
        device: where the statistics live; rows are moved there. On a GPU rows below float64 are added by Triton
            kernels, which wait for nothing: a label out of range is then met by the next read, which raises.
        precision: how those kernels multiply float32 rows: `"high"` as two bfloat16 parts, `"low"` rounded to one,
            `"ieee"` in float32.
        nonfinite: `"raise"`: rows with NaN or Inf are skipped and counted, and
            `leace`, `merge` and `save` raise; `"skip"`: they are skipped and counted.

    Raises:
        ValueError: an argument is out of range, or neither or both of
            `num_classes` and `target_dim` are given.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, section 4.

    >>> import torch
    >>> x, y = torch.randn(1000, 8), torch.arange(1000) % 2
    >>> moments = Moments(dim=8, num_classes=2).update(x, y)
    >>> moments.count, moments.class_counts.tolist()
    (1000, [500, 500])
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        dim: int,
        num_classes: int | None = None,
        *,
        target_dim: int | None = None,
        per_class: bool = False,
        device: torch.device | str = "cpu",
        precision: Precision = "high",
        nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        if (num_classes is None) == (target_dim is None):
            raise ValueError(
                f"got num_classes={num_classes} and target_dim={target_dim}, expected one of them: num_classes for "
                "integer labels, target_dim for real-valued targets"
            )
        sizes = {"dim": dim, "num_classes": num_classes, "target_dim": target_dim}
        for name, size in sizes.items():
            least = 2 if name == "num_classes" else 1
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < least):
                raise ValueError(f"{name} is {size!r}, expected an integer of at least {least}")
        if per_class and num_classes is None:
            raise ValueError("per_class=True needs num_classes: real-valued targets have no classes")
        if precision not in get_args(Precision):
            raise ValueError(f"precision is {precision!r}, expected one of {get_args(Precision)}")
        self.dim, self.num_classes, self.target_dim, self.per_class = dim, num_classes, target_dim, per_class
        self.nonfinite = nonfinite
        self.precision: Precision = precision
        self._state = State.empty(dim, num_classes or 1, target_dim or 0, per_class, torch.device(device))
        self.device = self._state.shift.device  # "cuda" is the GPU that was current, from now on
        self._staged: Rows | None = None
        self._on_device: DeviceRows | None = None
        self._left_out: Counter[str] = Counter()  # rows that were no rows to use, met on the device
        self._skipped = 0
        self._relative_error = 0.0
        self._removed: Counter[str] = Counter()

    @property
    def nonfinite(self) -> Literal["raise", "skip"]:
        """What `leace`, `merge` and `save` do about rows that were not finite; may be set."""
        return self._nonfinite

    @nonfinite.setter
    def nonfinite(self, value: Literal["raise", "skip"]) -> None:
        if value not in ("raise", "skip"):
            raise ValueError(f"nonfinite is {value!r}, expected 'raise' or 'skip'")
        self._nonfinite: Literal["raise", "skip"] = value

    # ------------------------------------------------------------- streaming

    @torch.inference_mode(False)
    def update(self, x: Tensor, y: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None) -> Moments:
        """Add rows and return self; a call that fails changes nothing.

        Args:
            x: (..., dim), any floating dtype, any strides.
            y: (...) integer or bool labels, -100 for rows to leave out; or (..., target_dim) real-valued targets.
            mask: (...) bool or 0/1 integers, rows to use.
            weight: (...) finite and >= 0; rows of weight zero are left out.

        Raises:
            TypeError: a dtype is not of the kind above.
            ValueError: a shape does not fit, a label is out of range, or a weight is negative or not finite.

        >>> import torch
        >>> tokens, labels = torch.randn(2, 5, 4, dtype=torch.bfloat16), torch.tensor([[0, 1, -100, 1, 0]] * 2)
        >>> Moments(dim=4, num_classes=2).update(tokens, labels).count
        8
        """
        if serves(self.device) and getattr(x, "dtype", None) in DTYPES:
            parts = check_kinds(self.dim, self.num_classes, self.target_dim, x, y, mask, weight)
            rows = self._rows_on_device()
            rows.add(self._state, *parts)
            self._relative_error = max(self._relative_error, rows.relative_error)
            return self
        if self._on_device is not None:
            self._on_device.join(self._state)
        rows, skipped = check_rows(self.dim, self.num_classes, self.target_dim, self.device, x, y, mask, weight)
        self._skipped += skipped
        if len(rows) and rows.x.dtype != torch.float64:
            self._relative_error = max(self._relative_error, relative_error(rows.x))
        block, begin = self._block_rows, 0
        while begin < len(rows):
            if not self._staged and len(rows) - begin >= block:
                self._absorb(rows.part(begin, begin + block))
                begin += block
                continue
            if self._staged is None or not self._staged.fits(rows):
                self._flush()
                self._staged = rows.staging(block)
            begin += self._staged.take(rows, begin)
            if self._staged.is_full:
                self._flush()
        return self

    @torch.inference_mode(False)
    def merge(self, other: Moments) -> Moments:
        """Add the rows of other moments of the same kind, and return self; `other` stays as it is.

        Raises:
            ValueError: the kinds differ, or non-finite rows were met and are not to be skipped.

        >>> import torch
        >>> one, two = (Moments(3, 2).update(torch.randn(9, 3), torch.arange(9) % 2) for _ in range(2))
        >>> one.merge(two).count
        18
        """
        self._check_same_kind(other)
        self.check_finite()
        theirs = other._settled()
        theirs.check_finite()
        self._flush()
        self._state.combine(theirs._state)
        self._skipped += theirs._skipped
        self._relative_error = max(self._relative_error, theirs._relative_error)
        if self._removed:
            self._removed -= Counter([theirs._state.fingerprint()])
        return self

    @torch.inference_mode(False)
    def remove(self, other: Moments) -> Moments:
        """Take the rows of other moments away again, and return self; `other` stays as it is.

        The error grows as eps times total over rest. Exact removal is merging the remaining shards again.

        Raises:
            ValueError: the kinds differ, `other` holds more rows than there are, it was removed before, or too
                little would remain for the digits that are left.

        >>> import torch
        >>> one, two = (Moments(3, 2).update(torch.randn(9, 3), torch.arange(9) % 2) for _ in range(2))
        >>> one.merge(two).remove(two).count
        9
        """
        self._check_same_kind(other)
        other = other._settled()
        name = other._state.fingerprint()
        if self._removed[name]:
            raise ValueError("these moments were removed before: merge them again first")
        settled = self._settled()
        left = without(settled._state, other._state)
        self._state, self._staged, self._on_device = left, None, None
        self._skipped = max(settled._skipped - other._skipped, 0)
        if not left.is_empty:
            self._removed[name] += 1
        return self

    @property
    def skipped(self) -> int:
        """Rows left out because x, or a target, was not finite."""
        self._read_device()
        return self._skipped

    @property
    def relative_error(self) -> float:
        """Bound on the rounding error of the correlation matrix: 2e-6 once rows below float64 were multiplied.

        Without the compiled kernels it is 2e-5. On a GPU it is 4e-6 once rows were multiplied as one narrow number.
        """
        return max(self._relative_error, self.dim * 2.0**-52)

    # ----------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically, with a checksum; it contains class means of the data.

        Raises:
            ValueError: non-finite rows were met and are not to be skipped.
        """
        self.check_finite()
        header = {
            "dim": self.dim,
            "num_classes": self.num_classes,
            "target_dim": self.target_dim,
            "per_class": self.per_class,
            "nonfinite": self.nonfinite,
            "skipped": self._skipped,
            "relative_error": self._relative_error,
            "removed": dict(self._removed),
            "contains": "class means and second moments of the data",
        }
        # Rows that wait for a full block are taken in now: going on from the file and without it give the same bits.
        save_tensors(path, "moments", self._flush().tensors(), header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Moments:
        """Read what `save` wrote, to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or no moments.
        """
        tensors, header = load_tensors(path, "moments")
        kind = {name: header[name] for name in ("dim", "num_classes", "target_dim", "per_class", "nonfinite")}
        moments = cls(**kind, device=device)
        moments._state = State(**{name: tensor.to(device) for name, tensor in tensors.items()})
        moments._skipped, moments._relative_error = header["skipped"], header["relative_error"]
        moments._removed = Counter(header["removed"])
        return moments

    @torch.inference_mode(False)
    def copy(self) -> Moments:
        """Return moments that share nothing with these."""
        twin = Moments(
            self.dim,
            self.num_classes,
            target_dim=self.target_dim,
            per_class=self.per_class,
            device=self.device,
            nonfinite=self.nonfinite,
            precision=self.precision,
        )
        if self._on_device is not None:
            twin._on_device = self._on_device.copy(self._state)
        twin._state = self._state.copy()
        twin._left_out = self._left_out.copy()
        twin._staged = None if self._staged is None else self._staged.copy()
        twin._skipped, twin._relative_error = self._skipped, self._relative_error
        twin._removed = self._removed.copy()
        return twin

    def check_finite(self) -> None:
        """Raise ValueError if non-finite rows were met and are not to be skipped."""
        self._read_device()
        if self._skipped and self.nonfinite == "raise":
            raise ValueError(
                f"{self._skipped} rows held NaN or Inf and were left out, {self.count} rows were used: clean the data, "
                'or set moments.nonfinite = "skip" to go on without them'
            )

    def __repr__(self) -> str:
        what = f"num_classes={self.num_classes}" if self.num_classes else f"target_dim={self.target_dim}"
        skipped = f", skipped={self._skipped}" if self._skipped else ""
        staged = len(self._staged) if self._staged else 0
        waiting = f", waiting={self._on_device.used}" if self._on_device and self._on_device.used else ""
        return f"Moments(dim={self.dim}, {what}, count={int(self._state.counts.sum()) + staged}{waiting}{skipped})"

    # -------------------------------------------------------------- internal

    @property
    def _block_rows(self) -> int:
        """Rows in a block: a function of the width alone, so that no batch size changes a bit."""
        return max(1024, min(2048, 2**21 // self.dim))

    def _absorb(self, rows: Rows) -> None:
        self._state.absorb(rows.x, rows.labels, rows.targets, rows.weight)

    def _flush(self) -> State:
        """Take in the rows that still wait, and return the sums of all."""
        if self._staged or self._on_device is not None or self._left_out:
            self._take_in()
        return self._state

    @torch.inference_mode(False)
    def _take_in(self) -> None:
        if self._staged:
            self._absorb(self._staged.filled())
            self._staged.used = 0
        self._read_device()

    def _settled(self) -> Moments:
        """Return these moments with all rows in the sums, without changing them."""
        if not self._staged and (self._on_device is None or self._on_device.is_read):
            return self
        settled = self.copy()
        settled._flush()
        return settled

    def _rows_on_device(self) -> DeviceRows:
        """Return where rows wait on a GPU."""
        if self._on_device is None:
            groups, targets = self.num_classes or 1, self.target_dim or 0
            self._on_device = DeviceRows(self.dim, groups, targets, self.per_class, self.device, self.precision)
        return self._on_device

    @torch.inference_mode(False)
    def _stage(self, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
        """Copy rows that the kernels can take; they do not count before `_commit`, and are dropped by the next call."""
        parts = check_kinds(self.dim, self.num_classes, self.target_dim, x, y, mask, None)
        self._rows_on_device().stage(self._state, *parts)

    @torch.inference_mode(False)
    def _commit(self) -> None:
        """Count what was staged last."""
        rows = self._rows_on_device()
        rows.commit(self._state)
        self._relative_error = max(self._relative_error, rows.relative_error)

    def _drop(self) -> None:
        """Forget what was staged and not committed."""
        if self._on_device is not None:
            self._on_device.pending = 0

    @torch.inference_mode(False)
    def _read_device(self) -> None:
        """Take in what waits on the device, and what was met there; raise if that were no labels, masks or weights."""
        if self._on_device is not None and not self._on_device.is_read:
            self._on_device.flush(self._state)
            counts = Counter(self._on_device.take_counts(self._state))
            self._skipped += counts["infinite"] + counts["target"]
            self._left_out += Counter({what: counts[what] for what in MISTAKES})
        if self._left_out:
            most = (self.num_classes or 1) - 1
            found = [f"{n} {MISTAKES[what].format(most=most, ignore=IGNORE)}" for what, n in self._left_out.items()]
            raise ValueError(f"of the rows that were added, {'; '.join(found)}: these were left out, begin anew")

    def _check_same_kind(self, other: Moments) -> None:
        if not isinstance(other, Moments):
            raise TypeError(f"got {type(other).__name__}, expected Moments")
        for name in ("dim", "num_classes", "target_dim", "per_class"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"the moments differ in {name}: {getattr(self, name)} here, {getattr(other, name)} there"
                )
