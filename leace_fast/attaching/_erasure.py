"""An eraser at work in a module: the module has another type meanwhile, whose forward erases what it returns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..erasers import Eraser
from ..models import acts_of, hidden_of, put_on, take_off, wears
from ._recomputing import Attached, in_function

LAYER = "erased"  # of modules: see `subtypes`

Norm = Callable[[nn.Module, Any], "Tensor | None"]


class Erasure:
    """An eraser at work at one site: called on what a module returns.

    Attributes:
        due: the mark of a pass that has to run the site, None once it has run.
        ran: whether the site has ever run.
        active: False leaves the rows as they are, for a comparison.
        attached: whether it is at work still.
        norm: of a fused norm: its erased output, or None where the module has to compute it.
    """

    due: object = None

    def __init__(self, eraser: Eraser, norm: Norm | None = None) -> None:
        self.eraser, self.norm = eraser, norm
        self.normed: Any = None  # the forward whose formula `norm` computes; of copies that of their first pass
        self.ran, self.active = False, True
        self.attached = Attached()

    def __call__(self, output: Any) -> Any:
        """Return the output of the module with its hidden states erased."""
        self.due, self.ran = None, True
        if in_function() and not torch.compiler.is_compiling():
            self.attached.look()
        if isinstance(output, Tensor):
            return self.eraser._bound_for(output)(output) if self.active else output
        hidden = hidden_of(output)
        if hidden is output:
            kind = type(output).__name__
            raise ValueError(f"the output of {self.eraser.site!r} is a {kind}, expected one float tensor")
        return (self(hidden), *output[1:])

    def __reduce__(self) -> Any:
        return Erasure, (self.eraser, self.norm)  # a copy has not run


def erase_in(module: nn.Module, erasure: Erasure) -> Callable[[], None]:
    """Let a module erase what it returns; returns what ends that.

    The module stays the same object with the same parameters, hooks and names in a `state_dict`; its type changes. A
    hook would do too, and costs more: torch takes a longer way to call a module that has any.

    Raises:
        ValueError: the module cannot change its type, or has been given erasers already; says why.
    """
    if acts_of(module) is not None or wears(module, LAYER):
        raise ValueError("something else is attached there, which acts first")
    if "forward" in vars(module):
        raise ValueError("its forward has been replaced")
    try:
        put_on(module, LAYER, forward=_forward_over)
    except TypeError as error:
        raise ValueError(f"its type cannot change ({error})") from error
    erasure.normed = None
    vars(module)["_erasure"] = erasure

    def end() -> None:
        # first: so the module is its own again, also under a type that cannot be taken off
        vars(module)["_erasure"] = None
        if take_off(module, LAYER):
            del vars(module)["_erasure"]

    return end


def _forward_over(kind: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # found anew in each call: libraries replace the forward of a class by a faster one
        original = kind.forward
        try:
            erasure: Any = self._erasure
        except AttributeError:
            check_kept(self, "_erasure", LAYER)
            erasure = None
        if erasure is None:  # a library has kept this forward, and calls it after the end
            return original(self, *args, **kwargs)
        if erasure.norm is not None and erasure.active and len(args) == 1 and not kwargs:
            if erasure.normed is None:
                erasure.normed = original
            erased = erasure.norm(self, args[0]) if erasure.normed is original else None
            if erased is not None:
                erasure.due, erasure.ran = None, True
                if in_function() and not torch.compiler.is_compiling():
                    erasure.attached.look()
                return erased
        return erasure(original(self, *args, **kwargs))

    return forward


def check_kept(module: nn.Module, name: str, layer: str) -> None:
    """Raise AttributeError for a copy of an erased module that has lost what erases or watches."""
    if name not in vars(module) and wears(module, layer):
        raise AttributeError(
            f"this {type(module).__name__} was copied while erasers were attached, and lost {name}, without which it "
            "would run without being erased: detach them first"
        )
