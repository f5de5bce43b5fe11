"""What erasers are given: rows and labels, as tensors or as arrays of NumPy, and where they are to be held."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy
import torch
from torch import Tensor

from .._ops import check_dense, device_here, tensor_from
from ..statistics import IGNORE

Rows = TypeVar("Rows", Tensor, numpy.ndarray)


def tensor_of(given: object, name: str = "x") -> Tensor:
    """Return a tensor as it is, and an array as a tensor on its memory, or on a copy where torch cannot write there.

    Raises:
        TypeError: it is neither, or of a dtype that torch does not have.

    >>> tensor_of(numpy.ones(2)[::-1])
    tensor([1., 1.], dtype=torch.float64)
    """
    if isinstance(given, Tensor):
        return given
    if not isinstance(given, numpy.ndarray):
        raise TypeError(f"{name} is a {type(given).__name__}, expected a tensor or an array of NumPy")
    return tensor_from(given, name)


def factor_of(given: object) -> Tensor:
    """Return what a constructor was given for a part of a map, a tensor, an array or lists of numbers, as a tensor."""
    factor = tensor_of(given) if isinstance(given, numpy.ndarray) else torch.as_tensor(given)
    check_dense(factor, "a factor")
    return factor


def changed(x: numpy.ndarray, erase_: Callable[[Tensor], object]) -> numpy.ndarray:
    """Return an array whose rows were changed in place by a function of tensors.

    Raises:
        TypeError: it is no array, or of a dtype that torch does not have.
        ValueError: it is read-only.
    """
    rows = tensor_of(x)
    if not x.flags.writeable:
        raise ValueError("x is a read-only array and cannot change in place: call the eraser itself, or copy x first")
    erase_(rows)
    if rows.data_ptr() != x.ctypes.data:  # a copy
        x[...] = rows.numpy()
    return x


def destination(
    device: torch.device | str | torch.dtype | None, dtype: torch.dtype | None
) -> tuple[torch.device | str | None, torch.dtype | None]:
    """Return the device and the dtype that factors are to be held in, either of which may have come first.

    Raises:
        ValueError: the device is not here, or dtype is neither torch.float32 nor torch.float64.
    """
    if isinstance(device, torch.dtype):
        device, dtype = None, device
    if device is not None:
        device = device_here(device)
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype}, expected torch.float32 or torch.float64: x may have any floating dtype")
    return device, dtype


def checked_rows(x: Tensor, dim: int) -> None:
    """Raise TypeError if x is not floating, and ValueError if it is not of shape (..., dim)."""
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}, expected a floating one")
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (..., {dim})")


def checked_labels(labels: Tensor | numpy.ndarray | int, x: Tensor, num_classes: int) -> Tensor:
    """Return the labels of rows x (..., d), one for each or one for all, as (n,) int64 on their device.

    Raises:
        TypeError: the labels are not integers.
        ValueError: there is not one for each row, or one is neither a class nor -100.
    """
    y, shape = factor_of(labels).to(x.device), x.shape[:-1]
    if y.is_floating_point() or y.is_complex():
        raise TypeError(f"labels have dtype {y.dtype}, expected integers")
    if y.ndim and y.shape != shape:
        raise ValueError(f"labels have shape {tuple(y.shape)}, expected {tuple(shape)}: one for each row of x")
    y = y.expand(shape).reshape(-1).long()
    wrong = (y != IGNORE) & ((y < 0) | (y >= num_classes))
    if bool(wrong.any()):
        known = f"0 to {num_classes - 1}, or {IGNORE} to leave a row as it is"
        raise ValueError(f"a label is {int(y[wrong][0])}, expected {known}")
    return y
