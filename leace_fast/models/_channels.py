"""`Channels`: in which axis convolutions put their channels, followed through what becomes of their output."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution")
TURNS = ("transpose", "permute", "t", "swapaxes", "swapdims", "movedim")


class Channels:
    """The axis of the channels of each tensor that a convolution made, or that was made of one place by place.

    >>> import torch
    >>> channels, x = Channels(), torch.zeros(2, 8, 20)
    >>> channels.note(torch.ops.aten.convolution.default, (), x)
    >>> y = x.transpose(1, 2)
    >>> channels.note(torch.ops.aten.transpose.int, (x, 1, 2), y)
    >>> channels.axis_of(x), channels.axis_of(y)
    (1, 2)
    """

    def __init__(self) -> None:
        self._axes: Any = WeakIdKeyDictionary()

    def axis_of(self, tensor: Tensor) -> int | None:
        """The axis of a tensor's channels, None where it is not known to have any."""
        return self._axes.get(tensor)

    def note(self, func: Any, args: Any, output: Any) -> None:
        """Take in an operation of torch: what ran, its positional arguments, and what it returned."""
        output = output[0] if isinstance(output, (tuple, list)) and output else output
        if not isinstance(output, Tensor):
            return
        name = func.overloadpacket.__name__
        if name in CONVOLUTIONS:
            batched = output.ndim > 2
            self._axes[output] = 1 if batched else 0
            return
        followed = [part for part in args if isinstance(part, Tensor) and part in self._axes]
        axis = self._after(name, func, args, followed[0], output) if followed else None
        if axis is None:
            self._axes.pop(output, None)
        else:
            self._axes[output] = axis

    def _after(self, name: str, func: Any, args: Any, before: Tensor, after: Tensor) -> int | None:
        """The axis of the channels after an operation; None where it cannot be told."""
        axis = self._axes[before]
        if name in TURNS:
            return _turned(axis, before.ndim, name, args)
        if after.shape == before.shape and (not func.is_view or after.stride() == before.stride()):
            return axis
        kept = slice(axis + 1)  # cut or joined behind the channels, as pooling and flattening do
        return axis if after.ndim > axis and after.shape[kept] == before.shape[kept] else None


def _turned(axis: int, ndim: int, name: str, args: Any) -> int | None:
    if name == "permute":
        return [place % ndim for place in args[1]].index(axis)
    if name in ("transpose", "swapaxes", "swapdims"):
        one, two = (place % ndim for place in args[1:3])
        return two if axis == one else one if axis == two else axis
    return None
