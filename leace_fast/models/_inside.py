"""`Inside`: the model that a wrapper holds, and the names of its modules in both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass, replace
from typing import Any

from torch import nn

from ._modules import check_module
from ._wrappers import inner_name, unwrapped


class Inside:
    """The model inside of all wrappers, which is run in their place; of a model without wrappers, itself.

    Attributes:
        model: the model inside.
        whole: the model as it was given.

    Args:
        given: a model, wrapped or not.

    Raises:
        TypeError: it is no module, or one without a forward pass.
        ValueError: its weights are on the meta device; or its wrapper adds tokens of its own, as prompts that are
            learned.

    >>> inside = Inside(nn.DataParallel(nn.Sequential(nn.LayerNorm(4))))
    >>> inside.name("module.0"), inside.name("0"), inside.given("0")
    ('0', '0', 'module.0')
    """

    def __init__(self, given: nn.Module) -> None:
        check_module(given)
        # static, as the types of scripted modules have a forward that only their instances can be asked for
        unset = inspect.getattr_static(type(given), "forward") is nn.Module.forward
        if unset and "forward" not in vars(given):
            raise TypeError(
                f"a {type(given).__name__} has no forward pass: give the model inside it that is called on batches"
            )
        configs = getattr(given, "peft_config", None)
        for config in configs.values() if isinstance(configs, dict) else ():
            if getattr(config, "is_prompt_learning", False):
                raise ValueError(
                    f"the model has learned prompts of PEFT ({type(config).__name__}), tokens that no label is for: "
                    "give the model inside, as by get_base_model()"
                )
        self.whole, self.model = given, unwrapped(given)
        self._outer = next(name for name, module in given.named_modules() if module is self.model)
        self._known: dict[str, str] = {}  # by the name without wrappers, also of those round a layer
        for name, _ in self.model.named_modules():
            self._known.setdefault(inner_name(name), name)
        self._known.update((name, name) for name, _ in self.model.named_modules())

    def name(self, name: str) -> str:
        """The name, or the pattern of names, that the model inside has for a module of either."""
        if name in self._known:
            return self._known[name]
        if self._outer and name.startswith(f"{self._outer}."):
            name = name[len(self._outer) + 1 :]
        return self._known.get(name) or self._known.get(inner_name(name), name)

    def given(self, name: str) -> str:
        """The name that the model as it was given has for a module of the one inside."""
        return ".".join(part for part in (self._outer, name) if part)

    def sites(self, sites: Any) -> Any:
        """What a caller calls sites, names or `Site`s, as the model inside names them."""
        if isinstance(sites, str):
            return self.name(sites)
        return [
            self.name(site) if isinstance(site, str) else _renamed(site, self.name) if is_dataclass(site) else site
            for site in sites
        ]

    def given_sites(self, sites: Iterable[Any]) -> list[Any]:
        """The `Site`s of the model inside, by the names of the model as it was given."""
        return [_renamed(site, self.given) for site in sites]


def _renamed(site: Any, name: Callable[[str], str]) -> Any:
    return replace(site, name=name(site.name), readers=tuple(map(name, site.readers)))
