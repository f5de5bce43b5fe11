"""The directive `command-line`: the commands of a Typer app with their arguments and options, as the code declares."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.models import ArgumentInfo, CommandInfo


class CommandLine(SphinxDirective):
    """`{command-line} module:app program` writes a section for each command."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        module, app = self.arguments[0].split(":")
        made: list[nodes.Node] = []
        for command in getattr(importlib.import_module(module), app).registered_commands:
            name = f"{self.arguments[1]} {command_name(command)}"
            section = nodes.section(ids=[nodes.make_id(name)], names=[name])
            section += nodes.title("", "", nodes.literal("", name))
            self.state.document.note_explicit_target(section)
            lines = StringList([*_lines(self.arguments[1], name, command)], source=self.arguments[0])
            self.state.nested_parse(lines, 0, section)
            made.append(section)
        return made


def command_name(command: CommandInfo) -> str:
    return command.name or command.callback.__name__.replace("_", "-")  # type: ignore[union-attr]


def parameters(command: CommandInfo) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield (name, type, what Typer is told of it, default) of each parameter of a command."""
    hints = typing.get_type_hints(command.callback, include_extras=True)
    for name, parameter in inspect.signature(command.callback).parameters.items():  # type: ignore[arg-type]
        kind, info = typing.get_args(hints[name])[:2]
        yield name, kind, info, parameter.default


def _lines(program: str, name: str, command: CommandInfo) -> Iterator[str]:
    """The Markdown of one command."""
    found = list(parameters(command))
    needed = [
        info.metavar or name.upper() if isinstance(info, ArgumentInfo) else f"{flag(name, info)} {metavar(kind, info)}"
        for name, kind, info, default in found
        if default is inspect.Parameter.empty
    ]
    yield from ("```text", " ".join([name, *needed, "[OPTIONS]"]), "```", "")
    yield from inspect.cleandoc(command.help or command.callback.__doc__ or "").replace("\b\n", "").splitlines()
    shown = [line for line in inspect.cleandoc(command.epilog or "").splitlines() if line]
    examples = [line for line in shown if line.startswith(program)]
    yield from ("", *(line for line in shown if line not in examples))
    if examples:
        yield from ("", "```sh", *examples, "```")
    if found:
        yield from ("", "| argument or option | meaning |", "|---|---|")
    for name, kind, info, default in found:
        told = (info.help or "").rstrip(".").replace("|", "\\|")
        if default not in (None, False, inspect.Parameter.empty):
            told += f"; default: `{default}`"
        shown = info.metavar or name.upper() if isinstance(info, ArgumentInfo) else flag(name, info)
        value = "" if isinstance(info, ArgumentInfo) or kind is bool else f" {metavar(kind, info)}"
        yield f"| `{shown}{value}` | {told}. |"
    yield ""


def flag(name: str, info: Any) -> str:
    """The option's name, as it is typed."""
    return info.param_decls[0] if info.param_decls else f"--{name.replace('_', '-')}"


def metavar(kind: Any, info: Any) -> str:
    """What stands for an option's value: a word that names its type."""
    if info.metavar:
        return info.metavar
    kinds = [one for one in (typing.get_args(kind) or (kind,)) if one is not type(None)]
    inner = typing.get_args(kinds[0]) or kinds  # list[str] is given one at a time
    return {"Path": "PATH", "str": "TEXT", "int": "NUMBER", "float": "NUMBER"}.get(inner[0].__name__, "VALUE")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
