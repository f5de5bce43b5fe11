"""Every public name is documented: what stands in an `__all__`, or is a method of a public class, has its entry.

The directive `every` makes the entries of a module whose names follow from a table.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

MEMBERS = (FunctionType, property, classmethod, staticmethod)

logger = logging.getLogger(__name__)


def public_names(modules: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield (full name, object) of what the modules export, and of the methods and properties of their classes."""
    for module in modules:
        exporting = importlib.import_module(module)
        for name in exporting.__all__:
            thing = getattr(exporting, name)
            if name.startswith("__") or inspect.ismodule(thing):
                continue
            yield f"{module}.{name}", thing
            for member, value in members(thing):
                yield f"{module}.{name}.{member}", value


def members(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, object) of the methods and properties that a class has of this package, also from its bases."""
    for base in thing.__mro__ if inspect.isclass(thing) else ():
        for name, value in vars(base).items():
            ours = base.__module__.startswith("leace_fast") or base is thing
            if ours and not name.startswith("_") and isinstance(value, MEMBERS):
                yield name, value


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names without an entry, unless the same object has one under another public name."""
    documented = env.domains.python_domain.objects
    every = list(public_names(app.config.public_modules))
    covered = {id(thing) for name, thing in every if name in documented}
    for name, thing in every:
        if id(thing) not in covered:
            logger.warning("%s is public and stands on no page of the reference", name, type="public")


class Every(SphinxDirective):
    """The entries of all that a module exports, in its order; the option `except` names those that stand elsewhere."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"except": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        left_out = self.options.get("except", "").split()
        named = [name for name in module.__all__ if name not in left_out]
        kinds = {name: "autoclass" if inspect.isclass(getattr(module, name)) else "autofunction" for name in named}
        text = "\n".join(f".. {kind}:: {module.__name__}.{name}" for name, kind in kinds.items())
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("public_modules", [], "env")
    app.add_directive("every", Every)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
