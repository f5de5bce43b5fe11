"""The product of a block with itself, added to the second moments: on how many programs, and in which pieces."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import configs
from .launches import Prepared
from .scratch import Sizes
from .update import add_partials, rank_update

ADD_ROWS = 16  # of a program


class Product:
    """The kernels that multiply, for blocks of one kind.

    Args:
        sizes: of the blocks.
        config: how the product is taken.
        tile: the prepared rows.
        fixed: further arguments by name.
    """

    def __init__(self, sizes: Sizes, config: configs.Update, tile: Tensor, fixed: dict[str, Any]) -> None:
        self.sizes, self.config = sizes, config
        self._tile = tile
        self._update = Prepared(
            rank_update,
            fixed,
            warps=config.warps,
            tile=self._described(tile) if config.descriptor else tile,
            STRIDE=1 if sizes.per_class else sizes.classes,
            PROMOTE=config.promote,
            STAGES=config.stages,
            DESCRIPTOR=config.descriptor,
        )
        self._add_partials = Prepared(add_partials, fixed, SPLITS=sizes.splits, ROWS=ADD_ROWS)

    @property
    def may_fetch(self) -> bool:
        """Whether it can read rows that need no preparation where they lie."""
        # What it fetches beyond the ends of x is zero, as in the tile.
        return self.config.descriptor and self.config.planes == 1 and not self.sizes.per_class

    def add(self, state: Any, first: int, groups: int, fetched: Tensor | None = None) -> None:
        """Add the products of some groups to their second moments; `fetched` are the rows themselves."""
        tiles = self.sizes.tiles
        # Any pointer will do as x where nothing is read by it: one descriptor less.
        x = self._tile if fetched is None else self._described(fetched)
        self._update(
            (tiles, self.sizes.splits, groups),
            x=x,
            group_begin=first,
            FETCH=fetched is not None,
        )
        self._add_partials(
            (tiles, self.config.tile // ADD_ROWS, groups),
            state_shift=state.shift,
            state_second=state.second,
            group_begin=first,
        )

    def add_all(self, state: Any, fetched: Tensor | None = None) -> None:
        """Add the products of all groups, as many at a time as there is memory for."""
        groups, together = self.sizes.groups, self.sizes.together
        for group in range(0, groups, together):
            self.add(state, group, min(together, groups - group), fetched)

    def _described(self, rows: Tensor) -> TensorDescriptor:
        """Return how the tensor memory accelerator reads rows."""
        return TensorDescriptor.from_tensor(rows, [self.config.step, self.config.tile])
