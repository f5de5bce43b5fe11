"""What all erasers share: they never change, and are kept as one file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .._files import read_bytes, read_tensors, tensor_bytes, unreadable, write_bytes
from .._ops import device_here
from .._schema import Schema
from ._report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self


class Frozen:
    """A map that is frozen once it is made, the name of its method, and a report.

    Attributes:
        method: name of the method that made it.
        report: how it was fitted.
    """

    _kind: str  # of the file
    _schema: Schema  # of the file
    _frozen = False
    method: str
    report: Report | None

    def __setattr__(self, name: str, value: object) -> None:
        if self._frozen:
            kind = type(self).__name__
            raise AttributeError(f"an eraser is frozen: cannot set {name!r}, make another {kind} instead")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        kind = type(self).__name__
        raise AttributeError(f"an eraser is frozen: cannot delete {name!r}, make another {kind} instead")

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the map by the names of the constructor's arguments."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        """Return what a file says beside them and the report."""
        return {"method": self.method}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically, with a checksum; of the data it tells means, maps or quantiles only.

        Args:
            path: of the file; its folder must exist.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the report holds NaN, which no file does.

        Source: the format of https://huggingface.co/docs/safetensors.

        >>> import tempfile
        >>> from leace_fast import Eraser
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1]).save(f"{folder}/eraser.safetensors")
        ...     Eraser.load(f"{folder}/eraser.safetensors").rank
        1
        """
        write_bytes(path, self._to_bytes())

    def _to_bytes(self) -> bytes:
        """Return what `save` writes."""
        report = self.report.to_dict() if self.report else None
        return tensor_bytes(self._kind, self._tensors(), {**self._facts(), "report": report})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote, to the bit.

        Args:
            path: of the file.
            device: where the tensors are to be held.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds something else.

        Source: the format of https://huggingface.co/docs/safetensors.

        >>> import tempfile
        >>> from leace_fast import TargetEraser
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     TargetEraser(torch.ones(3, 1), torch.ones(1)).save(f"{folder}/eraser.safetensors")
        ...     TargetEraser.load(f"{folder}/eraser.safetensors").dim
        3
        """
        return cls._read(read_bytes(path), path, device)

    @classmethod
    def _read(cls, data: bytes, path: str | os.PathLike[str], device: torch.device | str) -> Self:
        """Do what `load` does, with the bytes of the file at `path`."""
        tensors, header = read_tensors(data, path, cls._kind, cls._schema.check)
        device = device_here(device)
        parts = {name: tensor.to(device) for name, tensor in tensors.items()}
        names = {name: header[name] for name in ("method", "site") if name in header}
        make = cast("Callable[..., Self]", cls)  # each takes its own parts
        try:
            report = None if header["report"] is None else Report.from_dict(header["report"])
            return make(**parts, **names, report=report)
        except (ValueError, TypeError) as error:
            raise unreadable(path, cls._kind, error) from error
