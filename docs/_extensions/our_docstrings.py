"""The docstrings of this package, as Sphinx wants them.

They are read in an editor first: `code` has one backtick, a source or a guarantee stands on the line that names it,
and parameters that are alike share one. Before napoleon reads a docstring it gets two backticks, or a link where the
name is public; sections `Source` and `Guarantees`; and an entry for each parameter.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import typing
from typing import Any

from public_names import public_names
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)")
SECTION = re.compile(r"^\s*(Args|Raises|Warns|Attributes):\s*$")
SEVERAL = re.compile(r"^(\s*)(\w+(?:, \w+)+):(\s.*)$")
ON_ITS_LINE = re.compile(r"^(\s*)(Guarantees|Source): (.*)$")


def rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into what napoleon reads."""
    if what == "class":
        _evaluate(app, name, obj)
    links = _links(app)
    text = CODE.sub(lambda code: _code(code[1], links), "\n".join(lines))
    made: list[str] = []
    section = ""
    for line in text.split("\n"):
        if found := SECTION.match(line):
            section = found[1]
        elif line and not line[0].isspace():
            section = ""
        if found := ON_ITS_LINE.match(line):
            made += [f"{found[1]}{found[2]}:", f"{found[1]}    {found[3]}"]
        elif section and (several := SEVERAL.match(line)):
            made += [f"{several[1]}{each}:{several[3]}" for each in several[2].split(", ")]
        else:
            made.append(line)
    if what in ("property", "attribute", "data") and ":" in made[0]:
        made[0] = f": {made[0]}"  # an empty type, or napoleon would take what stands before the colon for one
    lines[:] = made


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what classes have of other packages, and of Python itself (the fields of named tuples)."""
    function = getattr(obj, "fget", getattr(obj, "__func__", obj))
    return None if str(getattr(function, "__module__", "")).startswith("leace_fast") else True


def leave(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Type variables have no entry to link to: leave them as they are."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return content if isinstance(found, typing.TypeVar) else None


def _evaluate(app: Sphinx, name: str, obj: type) -> None:
    """Record what the annotations of a class's parameters mean; autodoc knows those of functions alone."""
    known = {key: value for module in _modules() for key, value in vars(module).items()}
    recorded = app.env.current_document.autodoc_annotations.setdefault(name, {})
    with contextlib.suppress(ValueError):  # a class without a signature
        for parameter in inspect.signature(obj).parameters.values():
            if isinstance(parameter.annotation, str):
                hint = eval(parameter.annotation, known | vars(sys.modules[obj.__module__]))
                recorded[parameter.name] = stringify_annotation(hint, "smart")


def _modules() -> list[Any]:
    """The modules of the package, in which the names of annotations are looked up."""
    return [module for name, module in sorted(sys.modules.items()) if name.split(".")[0] == "leace_fast"]


def _links(app: Sphinx) -> dict[str, str]:
    """The full name of each public thing by the name that docstrings use for it."""
    links: dict[str, str] = {}
    for full, _ in public_names(app.config.public_modules):
        if ".concept_erasure." not in full:
            links[re.sub(r"^leace_fast\.(methods\.|sklearn\.|data\.)?", "", full)] = full
    return links


def _code(text: str, links: dict[str, str]) -> str:
    return f":py:obj:`{text} <{links[text]}>`" if text in links else f"``{text.strip()}``"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", rewrite, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", leave)
    return {"parallel_read_safe": True}
