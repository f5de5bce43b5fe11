"""Acts: what takes the place of a module's output, by the one hook that runs all of them before any other hook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from ._modules import describe, hidden_of, is_hidden, submodules
from ._retyping import put_on, take_off, wears
from ._sites import Site

Callback = Callable[[str, Tensor], "Tensor | None"]
Act = Callable[[Any], Any]  # from the output of a module to what takes its place

LAYER = "hooked"  # of modules with acts: see `subtypes`


@contextmanager
def tap(model: nn.Module, sites: Iterable[Site | str], callback: Callback) -> Iterator[None]:
    """Calls `callback(name, output)` after each forward of each site, inside the `with` block.

    The callback returns None, or a tensor of the same shape and dtype that takes the output's place. A tap inside
    another acts on what the outer one left, and all taps act before any other hook of the module, so that captured
    hidden states are those that the model goes on with.

    Args:
        model: any module.
        sites: names of modules, or what `find_sites` returned.
        callback: takes the name of the site and its output, a float tensor (..., width).

    Raises:
        ValueError: an unknown site; while running: an output that is no float tensor, or a replacement that does
            not fit.

    >>> norm = nn.LayerNorm(4)
    >>> with tap(norm, [""], lambda name, output: output + 1):
    ...     norm(torch.zeros(4)).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    modules = submodules(model, [site if isinstance(site, str) else site.name for site in sites])
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(add_act(module, _Checked(name, callback)))
        yield


def add_act(module: nn.Module, act: Act) -> Callable[[], None]:
    """Let `act(output)` take the place of each output of a module from now on; returns what ends that.

    The acts of a module follow each other in the order in which they were added, before any other hook.
    """
    acts = acts_of(module) or _Acts(module)
    acts.entries = (*acts.entries, act)

    def end() -> None:
        # by identity: an equal act of another owner must stay
        acts.entries = tuple(entry for entry in acts.entries if entry is not act)
        if not acts.entries:
            acts.remove()

    return end


def acts_of(module: nn.Module) -> _Acts | None:
    """The acts that were added to a module, if any."""
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, _Acts)), None)


def tapped(model: nn.Module) -> bool:
    """Whether erasers or recordings are attached anywhere in the model, by hooks or inside its norms."""
    return any(wears(module) for module in model.modules())


def forget_compiled() -> None:
    """Have torch compile again: code compiled before a hook came or went does not look for it."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


class _Acts:
    """The one hook of a module that runs all its acts; meanwhile the module has a type of its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = ref(module)
        self.entries: tuple[Act, ...] = ()
        self.handle = module.register_forward_hook(self, prepend=True)
        try:
            put_on(module, LAYER)
        except TypeError:
            forget_compiled()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.module() is not module:
            raise RuntimeError(
                "this module was copied while erasers or recordings were attached; copy it outside of them"
            )
        hidden = hidden_of(output)
        for act in self.entries:
            hidden = act(hidden)
        if hidden is hidden_of(output):
            return output
        return (hidden, *output[1:]) if type(output) is tuple else hidden

    def __deepcopy__(self, memo: Any) -> _Copied:
        return _Copied()

    def __reduce__(self) -> Any:
        raise TypeError(
            "erasers or recordings are attached by hooks, which cannot be pickled: leave their `with` block, or detach "
            "them, first; the erasers themselves can be saved, and attached to what is loaded"
        )

    def remove(self) -> None:
        self.handle.remove()
        if (module := self.module()) is not None and not take_off(module, LAYER):
            forget_compiled()


class _Copied(_Acts):
    """What copies of a module get: whoever copied an erased module would believe the copy to be erased."""

    def __init__(self) -> None:
        self.module = lambda: None  # type: ignore[assignment]


class _Checked:
    """The act of a tap: what came and what goes on are checked."""

    def __init__(self, name: str, callback: Callback) -> None:
        self.name, self.callback = name, callback

    def __call__(self, output: Any) -> Any:
        if not is_hidden(output):
            raise ValueError(f"the output of {self.name!r} is {describe(output)}, expected one float tensor")
        changed = self.callback(self.name, output)
        if changed is None:
            return output
        if not isinstance(changed, Tensor) or changed.shape != output.shape or changed.dtype != output.dtype:
            raise ValueError(f"the output of {self.name!r}, {describe(output)}, cannot become {describe(changed)}")
        return changed
