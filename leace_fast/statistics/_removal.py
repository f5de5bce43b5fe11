"""Rows taken away from a state again, as far as its digits allow."""

from __future__ import annotations

from ._state import State

# A removal that would leave a larger relative error than this is refused.
MAX_ERROR = 1e-3


def without(state: State, taken: State) -> State:
    """Return what is left of a state without the rows of another; both stay as they are.

    Raises:
        ValueError: `taken` holds more rows of a group than there are, or too little would remain for the digits that
            are left.

    >>> import torch
    >>> from dataclasses import replace
    >>> one = torch.ones(1, dtype=torch.int64)
    >>> whole = replace(State.empty(1, 1, 0, False, one.device), counts=one, weights=one.double())
    >>> without(whole, whole).is_empty
    True
    """
    rest = state.counts - taken.counts
    if bool((rest < 0).any()):
        raise ValueError(
            f"cannot remove {taken.counts.tolist()} rows by class from {state.counts.tolist()}: "
            "remove only what was merged"
        )
    by_group = state.second.ndim == 3
    left = state.combined(taken, sign=-1)
    if left.is_empty:
        return State.empty(len(left.shift), len(rest), len(left.target_shift), by_group, left.shift.device)
    # Of weights that differ widely, rounding may leave a sum of squares below zero.
    lost = (left.squared_weights <= 0) & (rest > 0)
    left.squared_weights[lost] = (left.weights.square() / rest)[lost]
    # What has no rows has no sums either: set them to zero instead of to what rounding left.
    for tensor in (left.weights, left.squared_weights, left.sums, *([left.second] if by_group else [])):
        tensor[rest == 0] = 0
    if (error := _error(state, left)) > MAX_ERROR:
        raise ValueError(
            f"removing {int(taken.counts.sum())} of {int(state.counts.sum())} rows would leave a relative error "
            f"of {error:.0e}, at most {MAX_ERROR:.0e} is allowed: merge the remaining shards anew"
        )
    return left


def _error(before: State, after: State) -> float:
    """Return the relative rounding error of the variances that remain."""
    old, new = (state.second.diagonal(dim1=-2, dim2=-1) for state in (before, after))
    if before.second.ndim == 3:
        old, new = old.sum(0), new.sum(0)
    moved = old > 0
    if bool((new[moved] <= 0).any()) or bool((after.weights[after.counts > 0] <= 0).any()):
        return float("inf")
    ratio = float((old[moved] / new[moved]).max()) if bool(moved.any()) else 1.0
    return 2.0**-52 * max(ratio, float(before.weights.sum() / after.weights.sum()))
