"""`Moments`: the sufficient statistics of (x, labels), streamed in one pass, mergeable and removable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._files import load_tensors, save_tensors, unreadable
from .._ops import device_here
from ._accumulator import Accumulator
from ._at_once import at_once
from ._change import Change
from ._derived import Derived
from ._group_sums import GroupSums
from ._kind import Kind, NonFinite, Precision
from ._locks import locked, new_lock
from ._removal import without
from ._saved import check_file, sums_of, tensors_of
from ._state import State
from ._tally import Tally


class Moments(Derived):
    """Counts, class sums and second moment of rows, labelled or not, in float64, from one pass over the data.

    Rows may come in batches of any size: they are gathered into blocks of a
    fixed size first, so that the bits of the result do not depend on how the
    stream was cut. Every tensor that is handed out is a copy. A call that ends
    in the middle, as by Ctrl-C, changes everything or nothing, and several
    threads may add to the same moments.

    Args:
        dim: width of x.
        num_classes: number of classes k, for integer labels 0..k-1; without it and `target_dim`, rows have no labels.
        target_dim: width of real-valued targets, instead of `num_classes`.
        per_class: keep the second moment of each class too, (k, d, d).
        device: where the statistics live; rows are moved there. On a GPU rows below float64 are added by Triton
            kernels, which wait for nothing: a label out of range is then met by the next read, which raises.
        precision: how those kernels multiply float32 rows: `"high"` as two bfloat16 parts, `"low"` rounded to one,
            `"ieee"` in float32.
        nonfinite: `"raise"`: rows with NaN or Inf are skipped and counted, and
            `leace`, `merge` and `save` raise; `"skip"`: they are skipped and counted.

    Raises:
        ValueError: an argument is out of range, or both of `num_classes` and
            `target_dim` are given.

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
        nonfinite: NonFinite = "raise",
    ) -> None:
        kind = Kind(dim, num_classes, target_dim, per_class, precision, nonfinite)
        self._lock = new_lock()
        self._sums = Accumulator(kind, State.empty(*kind.sizes, device_here(device)), Tally())

    @property
    def device(self) -> torch.device:
        """Where the statistics live."""
        return self._sums.device

    @property
    def nonfinite(self) -> NonFinite:
        """What `leace`, `merge` and `save` do about rows that were not finite; may be set."""
        return self._kind.nonfinite

    @nonfinite.setter
    @locked
    def nonfinite(self, value: NonFinite) -> None:
        self._sums.kind = replace(self._kind, nonfinite=value)

    # ------------------------------------------------------------- streaming

    @locked
    def update(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Moments:
        """Add rows and return self; a call that fails changes nothing.

        Rows that come from the same text, speaker or module resemble each other. With `groups`, the class sums of each
        are kept too, and erasers tell what to expect of groups that were not among them.

        Args:
            x: (..., dim), any floating dtype, any strides.
            y: (...) integer or bool labels, -100 for rows to leave out; or (..., target_dim) real-valued targets; None
                for moments of x alone.
            mask: (...) bool or 0/1 integers, rows to use.
            weight: (...) finite and >= 0; rows of weight zero are left out.
            groups: (...) integers from 0 to 2^40, with classes only; in every call or in none. The same number is the
                same group in every call, and in moments to be merged. On a GPU they make the call wait for the device,
                and the last bits of their sums depend on how the stream was cut.

        Raises:
            TypeError: a dtype is not of the kind above.
            ValueError: a shape does not fit, a label or a group is out of range, a weight is negative or not finite,
                or groups come in some calls only.

        >>> import torch
        >>> tokens, labels = torch.randn(2, 5, 4, dtype=torch.bfloat16), torch.tensor([[0, 1, -100, 1, 0]] * 2)
        >>> Moments(dim=4, num_classes=2).update(tokens, labels).count
        8
        >>> texts = torch.tensor([0, 1])[:, None].expand(2, 5)
        >>> Moments(dim=4, num_classes=2).update(tokens, labels, groups=texts).num_groups
        2
        """
        Change(self._sums).add(x, y, mask, weight, groups).commit(self)
        return self

    @torch.inference_mode(False)
    def merge(self, other: Moments) -> Moments:
        """Add the rows of other moments of the same kind, and return self; `other` stays as it is.

        Args:
            other: moments of the same `dim`, `num_classes` or `target_dim`, and `per_class`, on the same device.

        Raises:
            TypeError: `other` is no `Moments`.
            ValueError: the kinds differ, only one of them has groups, or non-finite rows were met and are not to be
                skipped.

        >>> import torch
        >>> one, two = (Moments(3, 2).update(torch.randn(9, 3), torch.arange(9) % 2) for _ in range(2))
        >>> one.merge(two).count
        18
        """
        self._check_same_kind(other)
        one, two = sorted((self._lock, other._lock), key=id)  # in the same order everywhere
        with one, two:
            self.check_finite()
            theirs = Moments._of(other._settled())
            theirs.check_finite()
            state, after, added = self._flush(), self._sums.twin(), theirs._sums
            if added.has_rows:
                after.check_grouped(added.groups is not None)
            if added.groups is not None:
                after.groups = GroupSums.like(added.groups) if after.groups is None else after.groups.copy()
                after.groups.combine(added.groups)
            after.state = state.combined(added.state)
            after.tally = after.tally.merged(added.tally, added.state.fingerprint)
            self._sums = after
        return self

    @torch.inference_mode(False)
    def remove(self, other: Moments) -> Moments:
        """Take the rows of other moments away again, and return self; `other` stays as it is.

        The error grows as eps times total over rest. Exact removal is merging the remaining shards again.

        Args:
            other: moments that were merged, or that hold rows which were added.

        Raises:
            TypeError: `other` is no `Moments`.
            ValueError: the kinds differ, `other` holds more rows than there are, it was removed before, or too
                little would remain for the digits that are left.

        >>> import torch
        >>> one, two = (Moments(3, 2).update(torch.randn(9, 3), torch.arange(9) % 2) for _ in range(2))
        >>> one.merge(two).remove(two).count
        9
        """
        self._check_same_kind(other)
        one, two = sorted((self._lock, other._lock), key=id)
        with one, two:
            taken, settled = other._settled(), self._settled()
            name = taken.state.fingerprint() if taken.has_rows else None
            if name and settled.tally.removed[name]:
                raise ValueError("these moments were removed before: merge them again first")
            left, groups = without(settled.state, taken.state), settled.groups
            if groups is not None and taken.has_rows:
                if taken.groups is None:
                    raise ValueError("the moments to remove have no groups, these have: remove only what was merged")
                groups = None if left.is_empty else groups.without(taken.groups)
            after = Accumulator(self._kind, left, settled.tally.without(taken.tally, name))
            after.groups = groups
            self._sums = after
        return self

    @locked
    def pooled(self) -> Moments:
        """Return moments of the same rows without their labels: of x alone, for `metric=`.

        Raises:
            ValueError: rows were met on a device that were no labels, masks or weights.

        >>> import torch
        >>> moments = Moments(3, 2).update(torch.randn(9, 3), torch.arange(9) % 2)
        >>> moments.pooled().update(torch.randn(5, 3)).count
        14
        """
        settled = self._settled()
        kind = replace(self._kind, num_classes=None, target_dim=None, per_class=False)
        return Moments._of(Accumulator(kind, settled.state.pooled(), settled.tally.pooled()))

    @property
    @locked
    def skipped(self) -> int:
        """Rows left out because x, or a target, was not finite."""
        self._sums.read_device()
        return self._sums.tally.skipped

    @property
    def relative_error(self) -> float:
        """Bound on the rounding error of the correlation matrix: 2e-6 once rows below float64 were multiplied.

        Without the compiled kernels it is 2e-5. On a GPU it is 4e-6 once rows were multiplied as one narrow number.
        """
        return max(self._sums.tally.relative_error, self.dim * 2.0**-52)

    # ----------------------------------------------------------------- files

    @locked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically, with a checksum; it contains class means of the data.

        Args:
            path: of the file, in a folder that exists.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: non-finite rows were met and are not to be skipped.
        """
        self.check_finite()
        header = self._kind.header() | self._sums.tally.header()
        header["contains"] = "class means and second moments of the data"
        # Rows that wait for a full block are taken in now: going on from the file and without it give the same bits.
        state = self._flush()  # first: the groups are complete after it
        save_tensors(path, "moments", tensors_of(self._sums, state), header)

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Moments:
        """Read what `save` wrote, to the bit.

        Args:
            path: of the file.
            device: where the statistics live from now on, wherever they were written; rows are moved there.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or no moments, or the device is not here.

        >>> import tempfile, torch
        >>> moments = Moments(3, 2, precision="ieee").update(torch.randn(9, 3), torch.arange(9) % 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     moments.save(f"{folder}/moments.safetensors")
        ...     Moments.load(f"{folder}/moments.safetensors").precision
        'ieee'
        """
        device = device_here(device)
        tensors, header = load_tensors(path, "moments", check_file)
        try:
            sums = sums_of(tensors, header, device)
        except ValueError as error:
            raise unreadable(path, "moments", error) from error
        return cls._of(sums)

    @locked
    def copy(self) -> Moments:
        """Return moments that share nothing with these."""
        return Moments._of(self._sums.copy())

    @locked
    def check_finite(self) -> None:
        """Refuse rows that were not finite, unless they are to be skipped.

        Raises:
            ValueError: rows with NaN or Inf were met, and `nonfinite` is "raise".
        """
        self._sums.read_device()
        skipped = self._sums.tally.skipped
        if skipped and self.nonfinite == "raise":
            raise ValueError(
                f"{skipped} rows held NaN or Inf and were left out, {self.count} rows were used: clean the data, "
                'or set moments.nonfinite = "skip" to go on without them'
            )

    def __repr__(self) -> str:
        sums = self._sums
        what = "".join(
            f"{name}={size}, "
            for name, size in (("num_classes", self.num_classes), ("target_dim", self.target_dim))
            if size is not None
        )
        skipped = f", skipped={sums.tally.skipped}" if sums.tally.skipped else ""
        staged = len(sums.staged) if sums.staged else 0
        waiting = f", waiting={sums.on_device.used}" if sums.on_device and sums.on_device.used else ""
        return f"Moments(dim={self.dim}, {what}count={int(sums.state.counts.sum()) + staged}{waiting}{skipped})"

    # -------------------------------------------------------------- internal

    def __getstate__(self) -> dict[str, Any]:
        return {"_sums": self.copy()._sums}  # a lock cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=new_lock())

    def _group_sums(self) -> GroupSums | None:
        self._flush()
        return self._sums.groups

    @classmethod
    def _of(cls, sums: Accumulator) -> Moments:
        """Return moments that hold some sums."""
        moments = cls.__new__(cls)
        moments._lock, moments._sums = new_lock(), sums
        return moments

    @property
    def _kind(self) -> Kind:
        return self._sums.kind

    @locked
    def _take_in(self) -> None:
        """Take in the rows that still wait."""
        self._sums.read_device()
        Change(self._sums).flush().commit(self)

    def _flush(self) -> State:
        """Take in the rows that still wait, and return the sums of all.

        Raises:
            ValueError: rows were met on a device that were no labels, masks or weights.
        """
        if self._sums.staged or self._sums.on_device is not None or self._sums.tally.mistaken:
            self._take_in()
        return self._sums.state

    def _settled(self) -> Accumulator:
        """Return all rows in the sums; these moments stay as they are."""
        sums = self._sums
        if sums.on_device is not None and not sums.on_device.is_read:
            sums = sums.copy()  # what waits on a device is added in place
        sums.read_device()
        return Change(sums).flush().settled()

    def _check_same_kind(self, other: Moments) -> None:
        if not isinstance(other, Moments):
            raise TypeError(f"got {type(other).__name__}, expected Moments")
        self._kind.check_same(other._kind)

    # ------------------------------------------------------- for `record`

    @locked
    def _stage(self, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
        """Copy rows that the kernels can take; they do not count before `_commit`, and are dropped by the next call."""
        self._sums.stage(x, y, mask)

    @locked
    def _commit(self) -> None:
        """Count what was staged last."""
        self._sums.commit()

    @locked
    def _drop(self) -> None:
        """Forget what was staged and not committed."""
        self._sums.drop()


def update_all(updates: Sequence[tuple[Moments, dict[str, Any]]]) -> None:
    """Add rows to several moments, to all of them or to none.

    Args:
        updates: different moments, with the arguments of `Moments.update`.

    Raises:
        TypeError, ValueError: as `Moments.update`, for any of them.

    >>> import torch
    >>> one, two = Moments(3), Moments(5)
    >>> update_all([(one, {"x": torch.randn(9, 3)}), (two, {"x": torch.randn(9, 5)})])
    >>> one.count, two.count
    (9, 9)
    """
    with ExitStack() as locks, torch.inference_mode(False), torch.no_grad():
        for moments in sorted((moments for moments, _ in updates), key=lambda moments: id(moments._lock)):
            locks.enter_context(moments._lock)
        nothing: dict[str, Any] = dict.fromkeys(("y", "mask", "weight", "groups"))
        changes = [(moments, Change(moments._sums).add(**{**nothing, **given})) for moments, given in updates]
        at_once([step for moments, change in changes for step in change.steps(moments, alone=False)])
