"""Every public thing says what it is, what it takes, what it raises, where it comes from, and shows it.

pytest runs the examples with the modules that they stand in.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any, NamedTuple

import pytest

MODULES = ("leace_fast", "leace_fast.methods", "leace_fast.data", "leace_fast.integrations", "leace_fast.sklearn")
SECTIONS = ("Args", "Raises", "Warns", "Attributes", "Guarantees", "Source", "Yields", "Returns")
# What a paper describes; the rest is our own.
SOURCED = ("Moments", "Eraser", "scrub", "random_like", "export_lora", "LeaceTransformer")
# Given no argument that could be wrong, or handing it on to what says so itself.
RAISES_NOTHING = (
    *("EraserTable.check", "random_like", "Method", "inductor", "Eraser.with_site", "Moments.copy"),
    *("Report.to_dict", "Source.state_dict", "decompositions", "lora_commands"),
)


class Public(NamedTuple):
    """A public function or class, or a method of one."""

    name: str
    thing: Any
    owner: Any = None  # the class of a method or property

    @property
    def text(self) -> str:
        return inspect.getdoc(self.thing) or ""

    def section(self, name: str) -> str:
        """The lines of a section, empty if there is none."""
        found = re.search(rf"^{name}:(.*?)(?=^\S|\Z)", self.text, flags=re.MULTILINE | re.DOTALL)
        return found[1] if found else ""

    @property
    def fields(self) -> list[str]:
        """The fields of a dataclass or a named tuple."""
        if dataclasses.is_dataclass(self.thing):
            return [field.name for field in dataclasses.fields(self.thing)]
        return list(getattr(self.thing, "_fields", ()))

    @property
    def parameters(self) -> list[str]:
        """The parameters of a function, or of what makes an instance."""
        if self.fields or isinstance(self.thing, property):
            return []
        function = self.thing.__init__ if inspect.isclass(self.thing) else self.thing
        return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def every() -> list[Public]:
    """Return what the modules export, each thing once, and the methods and properties of the classes among it."""
    found: dict[int, Public] = {}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing) or inspect.ismodule(thing) or id(thing) in found:
                continue
            found[id(thing)] = Public(name, thing)
            for base in thing.__mro__ if inspect.isclass(thing) else ():
                for part, value in vars(base).items() if base.__module__.startswith("leace_fast") else ():
                    value = getattr(value, "__func__", value)  # of a class method
                    if not part.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                        found.setdefault(id(value), Public(f"{name}.{part}", value, thing))
    return list(found.values())


PUBLIC = every()
CALLABLE = [public for public in PUBLIC if not isinstance(public.thing, property)]
WHOLE = [public for public in CALLABLE if public.owner is None]


def names(publics: list[Public]) -> dict[str, Any]:
    return {"argvalues": publics, "ids": [public.name for public in publics]}


@pytest.mark.parametrize("public", **names(PUBLIC))
def test_begins_with_a_sentence(public: Public) -> None:
    assert public.text, f"{public.name} has no docstring"
    assert public.text.split("\n\n")[0].rstrip().endswith((".", ":")), "the first paragraph is a sentence"
    assert public.text[0].isupper() or public.text[0] == "`", "which begins like one"


@pytest.mark.parametrize("public", **names([public for public in CALLABLE if public.parameters]))
def test_names_every_parameter(public: Public) -> None:
    told = re.findall(r"^ {4}(\*{0,2}\w[\w, *]*):", public.section("Args"), flags=re.MULTILINE)
    given = {name.strip(" *") for line in told for name in line.split(",")}
    assert not set(public.parameters) - given, f"`Args:` leaves out {sorted(set(public.parameters) - given)}"
    assert not given - set(public.parameters), f"`Args:` names {sorted(given - set(public.parameters))}, no parameter"


@pytest.mark.parametrize("public", **names([public for public in WHOLE if public.fields]))
def test_names_every_field(public: Public) -> None:
    told = re.findall(r"^ {4}(\w[\w, ]*):", public.section("Attributes"), flags=re.MULTILINE)
    given = {name.strip() for line in told for name in line.split(",")}
    assert set(public.fields) == given, "`Attributes:` names the fields, each once"


@pytest.mark.parametrize("public", **names([public for public in CALLABLE if not public.fields]))
def test_says_what_it_raises(public: Public) -> None:
    if public.name not in RAISES_NOTHING:
        assert public.section("Raises").strip(), "no section `Raises:`"


@pytest.mark.parametrize("public", **names(WHOLE))
def test_shows_an_example(public: Public) -> None:
    if not public.fields:
        assert ">>> " in public.text, "no example"


@pytest.mark.parametrize(
    "public",
    **names(
        [
            public
            for public in WHOLE
            if public.name in SOURCED
            or (public.thing.__module__.startswith("leace_fast.methods.") and not public.fields)
        ]
    ),
)
def test_names_its_source(public: Public) -> None:
    assert public.section("Source").strip(), "no line `Source:`: the paper and the equation"


@pytest.mark.parametrize("public", **names(CALLABLE))
def test_sections_are_those_that_the_site_knows(public: Public) -> None:
    prose = public.text.split(">>> ")[0]
    found = re.findall(r"^([A-Z]\w+):(?:\s|$)", prose, flags=re.MULTILINE)
    assert not set(found) - set(SECTIONS), f"sections of another name: {sorted(set(found) - set(SECTIONS))}"
