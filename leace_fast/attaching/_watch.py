"""A module that runs, and does not run what it holds of sites, raises: in each pass, whatever happened since attaching.

Each module on the way from the model to a site has a watch. Before its pass it marks what it holds as due, and each
part that runs takes its mark away; afterwards no mark may be left. The marks of a pass are its own, so that threads
that run the model at the same time do not meet each other's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from torch import nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from ..models import acts_of, unwrapped, wears
from ._erasure import LAYER as ERASED
from ._erasure import Erasure, check_kept

LAYER = "watched"  # of modules: see `subtypes`

SKIPPED = (
    "this forward pass does not call that module (replaced after it was attached, skipped, or its weights are read by "
    "a fused kernel)"
)
REPLACED = "another module has taken the place of the one that the eraser was attached to, or its hooks are gone"
PATCHED = "the module's forward was replaced after the eraser was attached"
AGAIN = "detach the erasers and attach them again"


@dataclass(frozen=True, eq=False)
class Part:
    """What a module holds: a site, or a module that holds sites.

    Attributes:
        what: the erasure of the site, or the watch of the module.
        path: names that lead from the module to it.
        site: its name, or that of the first site below it.
    """

    what: Erasure | Watch
    path: tuple[str, ...]
    site: str


class Watch:
    """What one module must run in each of its passes.

    Attributes:
        sites: parts that erase.
        stages: parts that hold further sites; they may be left out once they have run.
        parts: all of them.
        children: of the sites, those that are children of the module: their names and erasures.
        stage_watches: of the stages.
        further: whether there are other sites than the children.
        due: the mark of a pass of the model, None once the module has run.
        ran: whether the module has ever run.
    """

    due: object = None  # of copies, which start without a mark

    def __init__(self) -> None:
        self.hold((), ())
        self.marks: dict[int, object] = {}  # by thread, of hooks alone
        self.ran = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "marks": {}, "ran": False}  # what a copy lost on its way is found in its first pass

    def hold(self, sites: Iterable[Part], stages: Iterable[Part]) -> None:
        """Hold these parts, and no others."""
        self.sites, self.stages = tuple(sites), tuple(stages)
        self.parts = tuple(part.what for part in (*self.sites, *self.stages))
        # the place of most: what is checked of them in each pass must cost next to nothing
        self.children = tuple((part.path[0], part.what) for part in self.sites if len(part.path) == 1)
        self.stage_watches = tuple(part.what for part in self.stages)
        self.further = len(self.children) < len(self.sites)

    def enter(self, mark: object) -> None:
        """Mark all parts as due."""
        self.due, self.ran = None, True
        for part in self.parts:
            part.due = mark

    def leave(self, module: nn.Module, mark: object) -> None:
        """Raise RuntimeError where a part has not run that had to, or another one stands in its place."""
        for part in (*self.sites, *self.stages):
            if part.what.due is not None or isinstance(part.what, Erasure):
                self._look(module, part, mark)

    def before(self, module: nn.Module, args: Any) -> None:
        """The hook for `enter` of modules whose forward cannot call it."""
        mark = self.marks[get_ident()] = []
        self.enter(mark)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook for `leave`."""
        self.leave(module, self.marks.pop(get_ident(), []))

    def _look(self, module: nn.Module, part: Part, mark: object) -> None:
        """Raise RuntimeError unless a part may have been left out."""
        what = part.what
        found = _standing(module, part)
        if found is None:
            raise _un_erased(part, f"{REPLACED}: {AGAIN}")
        if what.due is None or is_fx_symbolic_tracing():  # a trace calls the modules that it keeps later
            return
        check_forward(found, part, what.due is mark)
        if what.due is not mark:  # but that of another thread, which began since
            return
        if isinstance(what, Watch) and not what.ran and any(each.what.ran for each in (*what.sites, *what.stages)):
            self._adopt(module, part, mark)
        elif not self._may_skip(module, part, mark):
            raise _un_erased(part, SKIPPED)

    def _may_skip(self, module: nn.Module, part: Part, mark: object) -> bool:
        """Whether a part that is in its place may be left out by a pass: see "What must run" in docs/serving.md."""
        for length in range(1, len(part.path)):
            above, listed = part.path[:length], _at(module, part.path[:length])
            if only_holds(listed):
                items = [each for each in (*self.sites, *self.stages) if each.path[:length] == above]
                if any(each.what.due is not mark for each in items):
                    return True  # as experts without tokens, and layers that layerdrop or an early exit leave out
                # where each item has a site, those that pass through the list must have met one
                return part.what.ran and len({each.path[length] for each in items}) < len(listed._modules)
        return isinstance(part.what, Watch) and part.what.ran  # as the encoder, in passes of `generate`

    def _adopt(self, module: nn.Module, part: Part, mark: object) -> None:
        """Hold the parts of a module that is used otherwise than by its forward, and so never watches them."""
        watch: Any = part.what
        sites, stages = (
            [Part(each.what, (*part.path, *each.path), each.site) for each in parts]
            for parts in (watch.sites, watch.stages)
        )
        self.hold((*self.sites, *sites), (*(each for each in self.stages if each is not part), *stages))
        for each in (*sites, *stages):
            if not each.what.ran:
                each.what.due = mark
                self._look(module, each, mark)


def forward_under(kind: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(kind.forward)  # libraries look at the names of its arguments
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            watch: Any = self._watch
        except AttributeError:
            check_kept(self, "_watch", LAYER)
            watch = None
        if watch is None:
            return kind.forward(self, *args, **kwargs)
        # this is `enter` and `leave` written out: a call of either costs more than all that they do
        watch.due, watch.ran = None, True
        mark: list[None] = []  # like no other object
        for part in watch.parts:
            part.due = mark
        output = kind.forward(self, *args, **kwargs)
        try:
            modules = self._modules
            for name, part in watch.children:
                if part.due is not None or modules[name]._erasure is not part:  # type: ignore[union-attr]
                    raise KeyError(name)
            for part in watch.stage_watches:
                if part.due is not None:
                    raise KeyError
            if watch.further:
                raise KeyError
        except (AttributeError, KeyError):
            watch.leave(self, mark)
        return output

    return forward


def slow_paths(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """Members that keep torch's encoders from their fast paths, which read weights and call no module."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return {"activation_relu_or_gelu": _none}
    return {"use_nested_tensor": _none} if isinstance(module, nn.TransformerEncoder) else {}


def _none(kind: type[nn.Module]) -> property:
    return property(lambda self: 0)


def check_forward(module: nn.Module, part: Part, missed: bool = True) -> None:
    """Raise RuntimeError for a part whose own forward, which erases or watches, is not the one that runs.

    Args:
        module: that the part is.
        part: of its holder.
        missed: whether its own forward has not run; one that was set on the module may call it.
    """
    worn = wears(module, ERASED if isinstance(part.what, Erasure) else LAYER)
    if not worn and not hooked(module, part.what):
        raise _un_erased(part, f"the module's type was set back: {AGAIN}")
    if worn and missed and "forward" in vars(module):
        raise _un_erased(part, f"{PATCHED}; attach it again")


def only_holds(module: nn.Module) -> bool:
    """Whether a module has no forward, as a list of modules."""
    return type(module).forward is nn.Module.forward and "forward" not in vars(module)


def _at(module: nn.Module, path: tuple[str, ...]) -> Any:
    found: Any = module
    for name in path:
        found = found and found._modules.get(name)
    return found


def _standing(module: nn.Module, part: Part) -> nn.Module | None:
    """What stands in the place of a part, if it is the part, in wrappers or not."""
    found = _at(module, part.path)
    if found is None:
        return None
    if isinstance(part.what, Watch):  # of which others may keep what they hold in wrappers of any kind
        return next((each for each in found.modules() if vars(each).get("_watch") is part.what), None)
    ways = (found, unwrapped(found))
    return next((each for each in ways if vars(each).get("_erasure") is part.what or hooked(each, part.what)), None)


def hooked(module: nn.Module, what: Erasure | Watch) -> bool:
    """Whether an erasure or a watch acts by hooks."""
    acts = acts_of(module)
    if acts is not None and any(act is what for act in acts.entries):
        return True
    return any(getattr(hook, "__self__", None) is what for hook in module._forward_hooks.values())


def _un_erased(part: Part, reason: str) -> RuntimeError:
    return RuntimeError(f"the model ran without being erased at {part.site!r}: {reason}")
