"""Watches put on all modules that hold sites, and the guard of the model that holds them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from ..models import forget_compiled, put_on, take_off, wears
from ._erasure import Erasure
from ._watch import LAYER, Part, Watch, check_forward, forward_under, hooked, only_holds, slow_paths


class Guard:
    """A hook of the model: its own forward, which watches or erases, has run whenever the model has.

    Args:
        model: that erasers are attached to.
        own: the erasure or the watch of the model itself.
    """

    def __init__(self, model: nn.Module, own: Iterable[Part]) -> None:
        self.own = tuple(own)
        # kept, as a handle keeps the number of this hook from being given again where the model is loaded
        self.handle = model.register_forward_hook(self)
        self._arm()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._arm()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        for part in self.own:
            if part.what.due is self:
                check_forward(module, part)
            part.what.due = self

    def end(self) -> None:
        """Take the hook off."""
        self.handle.remove()

    def _arm(self) -> None:
        for part in self.own:
            part.what.due = self


def watch(model: nn.Module, modules: Mapping[str, nn.Module], erasures: Mapping[str, Erasure]) -> Callable[[], None]:
    """Watch that each pass of the model, and of any module in it, runs the sites; returns what ends that.

    Args:
        model: holds the sites.
        modules: that erase by now, by the name of their site.
        erasures: of these.
    """
    with ExitStack() as stack:
        touched: dict[nn.Module, tuple[int, Watch]] = {}  # with the number of modules above
        stack.callback(_release, touched, [*erasures.values()])
        own: list[Part] = []  # of the model itself
        for site, erasure in erasures.items():
            erasure.ran, erasure.due = False, None
            names = site.split(".") if site else []
            way = [model]
            for name in names:
                way.append(way[-1].get_submodule(name))
            below, end = Part(erasure, (), site), len(names)
            for i in reversed(range(end)):
                if _is_watched(way, i):
                    _, watch = touched.setdefault(way[i], (i, _watch_on(way[i])))
                    _hold(watch, Part(below.what, tuple(names[i:end]), site))
                    below, end = Part(watch, (), site), i
            if end == 0 and all(part.what is not below.what for part in own):
                own.append(below)
        stack.callback(Guard(model, own).end)
        return stack.pop_all().close


def _is_watched(way: list[nn.Module], i: int) -> bool:
    """Whether a module on the way to a site is the model, has the site or a list in it, or has a fast path."""
    if only_holds(way[i]):
        return False
    return i == 0 or i == len(way) - 2 or only_holds(way[i + 1]) or bool(slow_paths(way[i]))


def _hold(watch: Watch, part: Part) -> None:
    if isinstance(part.what, Erasure):
        watch.hold((*watch.sites, part), watch.stages)
    elif all(each.what is not part.what or each.path != part.path for each in watch.stages):
        watch.hold(watch.sites, (*watch.stages, part))


def _watch_on(module: nn.Module) -> Watch:
    """The watch of a module, which gets one unless it has one already."""
    watch = vars(module).get("_watch") or Watch()
    if wears(module, LAYER) or hooked(module, watch):
        return watch
    try:
        if "forward" in vars(module) or hasattr(module, "__deepcopy__"):
            raise TypeError
        put_on(module, LAYER, forward=forward_under, **slow_paths(module))
    except TypeError:  # a module that has its own forward or cannot change its type
        module.register_forward_pre_hook(watch.before)
        module.register_forward_hook(watch.after)
        forget_compiled()
    vars(module)["_watch"] = watch
    return watch


def _release(touched: Mapping[nn.Module, tuple[int, Watch]], erasures: list[Erasure]) -> None:
    """Let modules no longer hold erasures, and take the watch off those that hold none any more."""
    for module, (_, watch) in sorted(touched.items(), key=lambda item: -item[1][0]):
        watch.hold(
            [part for part in watch.sites if all(part.what is not each for each in erasures)],
            [part for part in watch.stages if isinstance(part.what, Watch) and (part.what.sites or part.what.stages)],
        )
        if watch.sites or watch.stages:
            continue
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number, hook in hooks.items() if getattr(hook, "__self__", None) is watch]:
                del hooks[number]
                forget_compiled()
        vars(module)["_watch"] = None  # also under a type that cannot be taken off
        if take_off(module, LAYER) or not wears(module, LAYER):
            del vars(module)["_watch"]
