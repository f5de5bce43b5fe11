"""What maps that are told the label of each row share: they are frozen, saved as one file, and check labels alike."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from .._files import load_tensors, save_tensors
from ..statistics import IGNORE
from ._report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self


class Labelled:
    """A map of rows and labels: some tensors, the name of its method, and a report.

    Attributes:
        method: name of the method that made it.
        report: how it was fitted.
    """

    _kind: str  # of the file
    _frozen = False
    _parts: dict[str, Tensor]
    method: str
    report: Report | None

    def __setattr__(self, name: str, value: object) -> None:
        if self._frozen:
            raise AttributeError(f"an eraser is frozen: cannot set {name!r}, make another one instead")
        super().__setattr__(name, value)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically, with a checksum; it holds means or quantiles of the data."""
        header = {"method": self.method, "report": self.report.to_dict() if self.report else None}
        save_tensors(path, self._kind, self._parts, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote, to the bit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds something else.
        """
        tensors, header = load_tensors(path, cls._kind)
        report = Report.from_dict(header["report"]) if header["report"] else None
        parts = {name: tensor.to(device) for name, tensor in tensors.items()}
        make = cast("Callable[..., Self]", cls)  # each takes its own parts
        return make(**parts, method=header["method"], report=report)


def checked_rows(x: Tensor, dim: int) -> None:
    """Raise TypeError if x is not floating, and ValueError if it is not of shape (..., dim)."""
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}, expected a floating one")
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (..., {dim})")


def checked_labels(labels: Tensor | int, x: Tensor, num_classes: int) -> Tensor:
    """Return the labels of rows x (..., d), one for each or one for all, as (n,) int64 on their device.

    Raises:
        TypeError: the labels are not integers.
        ValueError: there is not one for each row, or one is neither a class nor -100.
    """
    y, shape = torch.as_tensor(labels, device=x.device), x.shape[:-1]
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
