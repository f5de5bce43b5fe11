"""Every public thing says what it is; pytest runs the examples with the modules that they stand in."""

from __future__ import annotations

import inspect

import pytest

import leace_fast


@pytest.mark.parametrize("name", [name for name in leace_fast.__all__ if callable(getattr(leace_fast, name))])
def test_public_things_say_what_they_are(name: str) -> None:
    thing = getattr(leace_fast, name)
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    assert text.splitlines()[0].endswith("."), "the first line is a sentence"
    methods = [part for part in vars(thing).values() if inspect.isfunction(part)] if inspect.isclass(thing) else []
    silent = [part.__name__ for part in methods if not part.__name__.startswith("_") and not inspect.getdoc(part)]
    assert not silent, f"no docstring: {silent}"


@pytest.mark.parametrize("name", ["Moments", "Eraser", "leace", "random_subspace"])
def test_public_things_have_an_example_and_a_source(name: str) -> None:
    text = inspect.getdoc(getattr(leace_fast, name, None) or getattr(leace_fast.methods, name)) or ""
    assert ">>>" in text and "Raises:" in text and "Source:" in text
