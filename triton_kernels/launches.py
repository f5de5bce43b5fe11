"""Kernels with named arguments: those that never change are put in their places once."""

from __future__ import annotations

from typing import Any


def launch(kernel: Any, grid: tuple[int, ...], arguments: list[Any], warps: int) -> None:
    """Launch a kernel; fused multiply-adds whatever the default of this release."""
    kernel[grid](*arguments, num_warps=warps, enable_fp_fusion=True)


class Prepared:
    """A kernel some of whose arguments are fixed; a call takes the grid and the others, by name.

    Triton binds arguments in order in less time than named ones.

    Args:
        kernel: a function of Triton.
        fixed: values by name, of which the kernel takes those that it has parameters for.
        warps: of a program.
        own: values for this kernel alone, before those of `fixed`.
    """

    def __init__(self, kernel: Any, fixed: dict[str, Any], warps: int = 4, **own: Any) -> None:
        self.kernel, self.warps = kernel, warps
        known = {**fixed, **own}
        names = list(kernel.arg_names)
        if unknown := own.keys() - names:
            raise TypeError(f"{kernel.fn.__name__} has no {sorted(unknown)}, it has {names}")
        self._arguments = [known.get(name) for name in names]
        self._places = {name: place for place, name in enumerate(names) if name not in known}

    def __call__(self, grid: tuple[int, ...], **others: Any) -> None:
        if others.keys() != self._places.keys():
            raise TypeError(f"{self.kernel.fn.__name__} takes {sorted(self._places)}, got {sorted(others)}")
        arguments = self._arguments.copy()
        for name, value in others.items():
            arguments[self._places[name]] = value
        launch(self.kernel, grid, arguments, self.warps)
