"""Rows added to a `State` that stays as it is until everything is ready: then it is exchanged for another, at once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .._ops import slices
from ._at_once import Step
from ._block_sums import Products, Wide, block_sums, surely_fit
from ._state import State

# Blocks whose products wait at most. Beyond, the sums are copied first: that costs little then, and Ctrl-C waits for
# no more than so many. A small one is copied when a second block comes: that costs less than to wait.
MOST_WAITING, SMALL = 16, 2**17


class Draft:
    """What becomes of a state as rows are added.

    Small sums are new tensors. The second moment is so large that a copy would cost as much as some of the work:
    kernels add to the one of the state itself, all in one piece, once everything else is ready.

    Args:
        state: that of the rows so far, which nothing here changes.

    >>> state = State.empty(1, 2, 0, False, torch.device("cpu"))
    >>> draft = Draft(state)
    >>> draft.absorb(torch.ones(3, 1), torch.tensor([0, 1, 1]), None, None)
    >>> draft.settled().counts.tolist(), state.counts.tolist()
    ([1, 2], [0, 0])
    """

    def __init__(self, state: State) -> None:
        self.state = copy.copy(state)
        self._waiting: list[tuple[int | None, Products]] = []  # with their group, where each has a second moment
        self._blocks = 0
        self._owns = False  # the second moment, which may change in place

    def absorb(self, x: Tensor, labels: Tensor | None, targets: Tensor | None, weight: Tensor | None) -> None:
        """Add rows x (n, d), n >= 1, finite, with labels (n,) in range or targets (n, t), and weights (n,) > 0."""
        state = self.state
        if state.is_empty and not self._blocks:
            # Rounded to the rows' dtype, so that x - shift is exact where it matters.
            state.shift = _rounded_mean(x)
            if targets is not None:
                state.target_shift = targets.mean(0, dtype=torch.float64)
        self._blocks += 1
        if labels is None:
            labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._add_weights(labels, weight)
        if targets is not None:
            self._add_targets(x, targets, weight)
        if state.second.ndim == 2:
            self._add_block(x, labels, weight)
        else:
            self._add_by_group(x, labels, weight)
        if x.dtype == torch.float64 or targets is not None:
            self._check_range()

    def settled(self) -> State:
        """Return the state with all rows, whose second moment is a copy where products still waited."""
        if self._waiting:
            self._own()
        return self.state

    def steps(self, alone: bool) -> list[Step]:
        """Return what adds the products that wait to the second moment that the states share.

        A single one may turn out to be refused where it is `alone`: it returns False then, and has changed nothing.
        """
        if len(self._waiting) > alone and not surely_fit([products for _, products in self._waiting]):
            self._own()
        return [step for group, products in self._waiting for step in products.steps(self._second(group))]

    # ------------------------------------------------------------ internal

    def _add_block(self, x: Tensor, labels: Tensor, weight: Tensor | None) -> None:
        added, products = block_sums(len(self.state.sums), x, labels, weight, self.state.shift)
        self.state.sums = added.add_(self.state.sums)
        self._add(None, products)

    def _add_by_group(self, x: Tensor, labels: Tensor, weight: Tensor | None) -> None:
        sums = torch.zeros_like(self.state.sums)
        if self._waiting and x.dtype == torch.float64:
            self._own()  # else the products of each group would be kept for each block
        for group in labels.unique().tolist():
            member = labels == group
            own = None if weight is None else weight[member]
            added, products = block_sums(1, x[member], torch.zeros_like(labels[member]), own, self.state.shift)
            sums[group] = added[0]
            self._add(group, products)
        self.state.sums = sums.add_(self.state.sums)

    def _add(self, group: int | None, products: Products) -> None:
        """Add products to the second moment, or let them wait."""
        if self._owns:
            products.add_to(self._second(group))
            return
        if group is None and not self._waiting and (new := products.new(self.state.second)) is not None:
            self.state.second, self._owns = new, True
            return
        self._waiting.append((group, products))
        if self._blocks > (1 if self.state.second.numel() <= SMALL else MOST_WAITING):
            self._own()

    def _check_range(self) -> None:
        """Raise ValueError if squares leave float64; those of other rows cannot."""
        self.state.check_range([products for _, products in self._waiting if isinstance(products, Wide)])

    def _second(self, group: int | None) -> Tensor:
        return self.state.second if group is None else self.state.second[group]

    def _own(self) -> None:
        """Go on with a copy of the second moment, to which all products are added."""
        waiting, self._waiting, self._owns = self._waiting, [], True
        self.state.second = self.state.second.clone()
        for group, products in waiting:
            products.add_to(self._second(group))

    def _add_weights(self, labels: Tensor, weight: Tensor | None) -> None:
        """Add counts, weights and squared weights."""
        state, before = self.state, self.state.counts.double()
        state.counts = state.counts + torch.bincount(labels, minlength=len(before))
        if weight is None and torch.equal(state.weights, before) and torch.equal(state.squared_weights, before):
            state.weights, state.squared_weights = state.counts.double(), state.counts.double()  # no weights so far
            return
        w = torch.ones_like(labels, dtype=torch.float64) if weight is None else weight
        state.weights = state.weights.index_add(0, labels, w)
        state.squared_weights = state.squared_weights.index_add(0, labels, w * w)

    def _add_targets(self, x: Tensor, targets: Tensor, weight: Tensor | None) -> None:
        """Add the sums of the targets, and their moment with x."""
        state = self.state
        cross, sums, second = (part.clone() for part in (state.cross, state.target_sums, state.target_second))
        for part in slices(x):
            centred = targets[part].double() - state.target_shift
            weighted = centred if weight is None else centred * weight[part, None]
            cross.addmm_((x[part].double() - state.shift).mT, weighted)
            sums += weighted.sum(0)
            second.addmm_(weighted.mT, centred)
        state.cross, state.target_sums, state.target_second = cross, sums, second


def _rounded_mean(x: Tensor) -> Tensor:
    """Return the mean of rows (n, d), rounded to their dtype, as float64."""
    mean = x.mean(0)
    return (mean if bool(mean.isfinite().all()) else x.double().mean(0).to(x.dtype)).double()
