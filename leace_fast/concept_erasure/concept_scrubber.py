"""`ConceptScrubber`: erasers at the norms of a model, by the names of that package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..models import is_norm, tap
from .leace import LeaceEraser
from .utils import assert_type, mangle_module_path

Hook = Callable[[str, Tensor], "Tensor | None"]


class ConceptScrubber:
    """Erasers by the name of a norm, with dashes for dots, and the hooks that apply them.

    `leace_fast.Scrubber` does the same at any site, tests itself, and can be saved, folded and exported.

    Args:
        pre_hook: erase what the norms take instead of what they give.

    >>> import torch
    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    >>> scrubber = ConceptScrubber()
    >>> scrubber.erasers["0"] = LeaceEraser(torch.eye(4)[:, :1], torch.eye(4)[:1], None)
    >>> with scrubber.scrub(model):
    ...     model[0](torch.arange(4.0))[0].item()
    0.0
    """

    def __init__(self, pre_hook: bool = False) -> None:
        self.erasers: dict[str, LeaceEraser] = {}
        self.pre_hook = pre_hook

    @contextmanager
    def scrub(self, model: nn.Module) -> Iterator[ConceptScrubber]:
        """Erase at each norm that has an eraser, inside the `with` block.

        Raises:
            ValueError: an eraser's name is that of no norm.
        """

        def erase(key: str, x: Tensor) -> Tensor:
            return assert_type(LeaceEraser, self.erasers[key])(x)

        with self.apply_hook(model, erase):
            yield self

    @contextmanager
    def apply_hook(self, model: nn.Module, hook_fn: Hook) -> Iterator[ConceptScrubber]:
        """Call `hook_fn(key, x)` at each norm that has an eraser, inside the `with` block; what it returns replaces x.

        Raises:
            ValueError: an eraser's name is that of no norm.
        """
        # The names are those inside the base model, so that the head's own norm stays out.
        base = getattr(model, "base_model", model)
        norms = {mangle_module_path(name): name for name, module in base.named_modules() if is_norm(module)}
        missing = [key for key in self.erasers if key not in norms]
        if missing:
            raise ValueError(f"no norm of the model is named {missing[0]!r}, expected one of {', '.join(norms)}")
        chosen = {norms[key]: key for key in self.erasers}
        with ExitStack() as stack:
            if self.pre_hook:
                for name, key in chosen.items():
                    handle = base.get_submodule(name).register_forward_pre_hook(_before(hook_fn, key))
                    stack.callback(handle.remove)
            else:
                stack.enter_context(tap(base, chosen, lambda name, x: hook_fn(chosen[name], x)))
            yield self


def _before(hook_fn: Hook, key: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = hook_fn(key, inputs[0])
        return None if changed is None else (changed, *inputs[1:])

    return hook
