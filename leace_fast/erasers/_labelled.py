"""What maps that are told the label of each row share: some tensors, held on a device and in a dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from .._schema import NOTHING, OBJECT, TEXT
from ._arguments import destination, factor_of
from ._frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self


FIELDS = {"method": TEXT, "report": OBJECT | NOTHING}  # of their files
FLOATS = ("F32", "F64")


class Labelled(Frozen):
    """A map of rows and labels, by some tensors."""

    _parts: dict[str, Tensor]

    def _keep(self, what: str, **parts: object) -> None:
        """Copy the tensors of the map, in float64 if one of them is and in float32 otherwise.

        Raises:
            ValueError: a number is not finite; `what` says of what kind the numbers are.
        """
        tensors = {name: factor_of(part) for name, part in parts.items() if part is not None}
        wide = any(part.dtype == torch.float64 for part in tensors.values())
        dtype = torch.float64 if wide else torch.float32
        self._parts = {
            name: part.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
            for name, part in tensors.items()
        }
        if not all(bool(part.isfinite().all()) for part in self._parts.values()):
            raise ValueError(f"{what} NaN or Inf, expected finite numbers")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the tensors are held in: float32 or float64."""
        return next(iter(self._parts.values())).dtype

    @property
    def device(self) -> torch.device:
        """Device that the tensors are held on."""
        return next(iter(self._parts.values())).device

    def _tensors(self) -> dict[str, Tensor]:
        return self._parts

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return the same map, held on a device and in float32 or float64; either may come first.

        Args:
            device: where to; None leaves the tensors where they are.
            dtype: torch.float32 or torch.float64; None leaves them as they are.

        Raises:
            ValueError: dtype is another: factors are never rounded further, whatever dtype x has.

        Source: the call of `torch.Tensor.to`.

        >>> from leace_fast import TargetEraser
        >>> TargetEraser(torch.ones(3, 1), torch.ones(1)).to(torch.float64).dtype
        torch.float64
        """
        device, dtype = destination(device, dtype)
        parts = {name: part.to(device, dtype or part.dtype) for name, part in self._parts.items()}
        make = cast("Callable[..., Self]", type(self))  # each takes its own parts
        return make(**parts, method=self.method, report=self.report)
