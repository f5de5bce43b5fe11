"""What files of `Moments` hold, and what of it is believed: no sums that rows could not add up to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from .._schema import (
    BOOLEAN,
    FINITE,
    NOTHING,
    Layout,
    check_fields,
    check_layouts,
    integer,
    object_of,
    one_of,
)
from ._accumulator import Accumulator
from ._group_sums import MOST_GROUP, GroupSums
from ._kind import Kind, NonFinite, Precision
from ._state import State
from ._tally import Tally

GROUP_PREFIX = "group_"  # of the names of their sums
FIELDS = {
    "dim": integer(1),
    "num_classes": integer(2) | NOTHING,
    "target_dim": integer(1) | NOTHING,
    "per_class": BOOLEAN,
    "precision": one_of(*get_args(Precision)),
    "nonfinite": one_of(*get_args(NonFinite)),
    "skipped": integer(0),
    "relative_error": FINITE,
    "removed": object_of(integer(1)),
}
MOST_WEIGHTS = 1e150  # of a class: the square of their sum is a number too
ROUNDING = 1e-6  # share of the largest sum of squares by which rounding may leave another below zero


def check_file(header: Mapping[str, Any], layouts: Mapping[str, Layout]) -> None:
    """Raise ValueError, naming field or tensor, unless a header and the layouts of tensors are those of moments."""
    check_fields(header, FIELDS, optional=["precision"])  # files from before it was kept have the default
    kind = Kind.from_header(header)
    sums = {name: (_dtype(name), shape) for name, shape in State.shapes(*kind.sizes).items()}
    of_groups = {
        GROUP_PREFIX + "keys": (("I64",), ("cells",)),
        GROUP_PREFIX + "counts": (("I64",), ("cells",)),
        GROUP_PREFIX + "weights": (("F64",), ("cells",)),
        GROUP_PREFIX + "sums": (("F64",), ("cells", kind.dim)),
        GROUP_PREFIX + "shift": (("F64",), (kind.dim,)),
    }
    grouped = {name: layout for name, layout in layouts.items() if name.startswith(GROUP_PREFIX)}
    check_layouts({name: layout for name, layout in layouts.items() if name not in grouped}, sums)
    if not grouped:
        return
    if kind.num_classes is None:
        raise ValueError("it holds sums by group, which only classes have, and num_classes is null")
    try:
        check_layouts(grouped, of_groups)
    except ValueError as error:
        raise ValueError(f"the class sums of its groups do not fit each other: {error}") from None


def _dtype(name: str) -> tuple[str, ...]:
    return ("I64",) if name == "counts" else ("F64",)


def tensors_of(sums: Accumulator, state: State) -> dict[str, Tensor]:
    """Return what a file holds of some sums whose rows are all in `state`."""
    tensors = state.tensors()
    if sums.groups is not None:
        tensors |= {GROUP_PREFIX + name: part for name, part in sums.groups.tensors().items()}
    return tensors


def sums_of(tensors: Mapping[str, Tensor], header: Mapping[str, Any], device: torch.device | str) -> Accumulator:
    """Return the sums of a file that is what `check_file` takes.

    Raises:
        ValueError: they are those of no rows; says which.
    """
    kind, tally = Kind.from_header(header), Tally.from_header(header)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(GROUP_PREFIX)}
    by_group = {name.removeprefix(GROUP_PREFIX): tensor for name, tensor in tensors.items() if name not in own}
    check_sums(State(**own))
    if by_group:
        _check_groups(by_group, own["counts"], kind.num_classes or 1)
    sums = Accumulator(kind, State(**{name: tensor.to(device) for name, tensor in own.items()}), tally)
    if by_group:
        moved = {name: tensor.to(device) for name, tensor in by_group.items()}
        sums.groups = GroupSums.of_tensors(moved, kind.num_classes or 1)
    return sums


def check_sums(state: State) -> None:
    """Raise ValueError, naming the tensor, for sums that no rows add up to."""
    for name, tensor in state.tensors().items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds NaN or Inf, expected finite numbers")
    _check_weights(state)
    used = state.counts > 0
    if bool(state.sums[~used].any()):
        raise ValueError("sums holds numbers of a class without rows")
    if state.is_empty and any(bool(tensor.any()) for tensor in (state.second, state.target_sums, state.cross)):
        raise ValueError("second, target_sums or cross hold numbers, and counts no rows")
    total = float(state.weights.sum())
    for name, shift in (("second", state.shift), ("target_second", state.target_shift)):
        squares = getattr(state, name).diagonal(dim1=-2, dim2=-1)
        if squares.numel():
            allowed = ROUNDING * (squares.amax() + total * shift.square())
            if bool((squares < -allowed).any()):
                raise ValueError(f"{name} holds a sum of squares below 0")


def _check_weights(state: State) -> None:
    """Raise ValueError for counts, weights and their squares that do not belong together."""
    for name in ("counts", "weights", "squared_weights"):
        if bool((getattr(state, name) < 0).any()):
            raise ValueError(f"{name} holds a number below 0")
    if bool((state.counts >= 2**62 // len(state.counts)).any()):
        raise ValueError("counts holds more rows than can be counted")
    if bool((state.weights > MOST_WEIGHTS).any()):
        raise ValueError(f"weights holds a number above {MOST_WEIGHTS:.0e}")
    used = state.counts > 0
    for name in ("weights", "squared_weights"):
        if not used.equal(getattr(state, name) > 0):
            raise ValueError(f"{name} does not fit counts: what has rows has a weight, and nothing else has")
    if bool((state.squared_weights > state.weights.square() * (1 + ROUNDING)).any()):
        raise ValueError("squared_weights is above the square of weights")


def _check_groups(tensors: Mapping[str, Tensor], counts: Tensor, num_classes: int) -> None:
    """Raise ValueError for class sums by group that are those of no rows, or of other rows than the classes'."""
    keys = tensors["keys"]
    if bool((keys < 0).any()) or bool((keys // num_classes > MOST_GROUP).any()):
        raise ValueError("the class sums of its groups name a group that cannot be (keys)")
    if bool((tensors["counts"] < 0).any()):
        raise ValueError("the class sums of its groups hold fewer than no rows (counts)")
    by_class = counts.new_zeros(num_classes).index_add_(0, keys % num_classes, tensors["counts"])
    if not by_class.equal(counts):
        raise ValueError("the class sums of its groups are those of other rows")
