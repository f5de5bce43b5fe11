"""Arrays of NumPy as tensors: of any strides and byte order, read-only ones too; or a sentence that says why not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy
import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

UNSIGNED = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}  # which torch has, but can do little with


def tensor_from(array: numpy.ndarray, name: str = "x") -> Tensor:
    """Return an array as a tensor on its memory, or on a copy where torch cannot read or write there.

    Args:
        array: of numbers.
        name: for the error.

    Raises:
        TypeError: its entries are no numbers that torch has, or some are masked.

    >>> tensor_from(numpy.arange(3, dtype=">i2")[::-1])
    tensor([2, 1, 0], dtype=torch.int16)
    """
    check_plain(array, name)
    kind = array.dtype.kind
    if kind not in "biufc":
        raise TypeError(f"{name} is a {type(array).__name__} that holds no numbers ({array.dtype}), expected a tensor")
    if array.dtype.name in UNSIGNED:
        narrower = UNSIGNED[array.dtype.name]
        if array.size and int(array.max()) > numpy.iinfo(narrower).max:
            raise TypeError(f"{name} holds {array.max()}, which {narrower} cannot hold: give smaller numbers")
        return torch.from_numpy(array.astype(narrower))
    if array.itemsize > (16 if kind == "c" else 8):
        raise TypeError(f"{name} has dtype {array.dtype}, which torch does not have: convert it by astype('float64')")
    if array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0:
        try:
            return torch.from_numpy(array)
        except ValueError:  # strides that are no whole number of entries
            pass
    return torch.from_numpy(numpy.array(array, dtype=array.dtype.newbyteorder("="), order="C", subok=False))


def check_plain(given: Any, name: str, dates: bool = False) -> None:
    """Raise TypeError for a masked array, whose mask would get lost, and for dates and times unless these are taken."""
    if isinstance(given, numpy.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, expected a plain one: leave out masked rows, or fill them first")
    dtype = getattr(given, "dtype", None)
    if not dates and getattr(dtype, "kind", "") in ("m", "M"):
        raise TypeError(f"{name} holds dates or times ({dtype}), expected numbers: divide differences by a unit")


def takes_arrays(function: Function) -> Function:
    """Let a function of tensors take arrays of NumPy too; where it got one, a tensor that it returns is an array.

    >>> takes_arrays(torch.neg)(numpy.ones(2))
    array([-1., -1.])
    """

    @functools.wraps(function)
    def taking(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if not any(isinstance(one, numpy.ndarray) for one in given):
            return function(*args, **kwargs)

        def read(one: Any) -> Any:
            return tensor_from(one) if isinstance(one, numpy.ndarray) else one

        result = function(*map(read, args), **{name: read(one) for name, one in kwargs.items()})
        return result.numpy() if isinstance(result, Tensor) else result

    return taking  # type: ignore[return-value]
