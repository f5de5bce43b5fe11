"""How every command runs: errors that a user can mend as one line, a screen, and the tables of a study."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from .._extras import optional

if TYPE_CHECKING:
    from rich.console import Console

    from .._progress import Track
    from ..study import Study

UsageError: Any = typer.BadParameter.__base__  # typer names it nowhere: its module differs between releases


class Commands(TyperGroup):
    """The commands, with the errors of `readable_errors`."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Reads the arguments before the command; without any, the help is shown."""
        if not args:
            return super().make_context(info_name, args, parent, **extra)
        with readable_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Reads the arguments of the command and runs it."""
        with readable_errors():
            return super().invoke(ctx)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Show what a user can mend as one line, with exit code 2; everything, if LEACE_FAST_DEBUG is set."""
    try:
        yield
    except (UsageError, ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        if os.environ.get("LEACE_FAST_DEBUG"):
            raise
        typer.echo(f"error: {_line(error)}", err=True)
        raise typer.Exit(2) from error


def _line(error: Any) -> str:
    if not isinstance(error, UsageError):
        return " ".join(str(error).split()) or type(error).__name__
    command = ["leace-fast", *(error.ctx.command_path.split()[1:] if error.ctx else [])]
    return f"{' '.join(error.format_message().split()).rstrip('.')}: see {' '.join(command)} --help"


def screen() -> tuple[Console, Track]:
    """Return a console and a progress bar for its stages."""
    from .._progress import progress_bars

    with optional("tables need rich"):
        from rich.console import Console
    console = Console()
    with suppress(ImportError):
        from transformers.utils import logging

        logging.disable_progress_bar()
    return console, progress_bars(console)


def show(console: Console, study: Study, out: Path, facts: dict[str, Any], concept: str, model_id: str) -> None:
    """Print a study's tables and write its folder."""
    from ..study import loss_table, probe_table, stage_line, verdict, write_study

    paths = write_study(study, out, facts, concept, model_id)
    console.print(probe_table(study))
    if study.loss:
        console.print(loss_table(study.loss))
    for line in verdict(study):
        console.print(f"- {line}", highlight=False)
    console.print(f"\n[dim]{stage_line(study)}[/]", highlight=False)
    console.print("Written:", *(str(path) for path in paths), highlight=False, soft_wrap=True)
