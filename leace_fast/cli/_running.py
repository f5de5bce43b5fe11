"""How every command runs: errors that a user can mend, and warnings, as one line each; a screen; a study's tables."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from .._extras import optional
from .._warnings import once

if TYPE_CHECKING:
    from rich.console import Console

    from .._progress import Track
    from ..study import Study

UsageError: Any = typer.BadParameter.__base__  # typer names it nowhere: its module differs between releases


PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
ISSUES = "https://github.com/leace-fast/leace-fast/issues"
MOST_CHARACTERS = 600  # of an error: some libraries print what they were given


class Terminated(KeyboardInterrupt):
    """The process is to end: raised where Python stands, so that files are put away as after Ctrl-C."""


class Commands(TyperGroup):
    """The commands, with the errors of `readable_errors`."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command: what the terminal cannot show is escaped, and nobody is told that nobody reads on."""
        streams: Any = (sys.stdout, sys.stderr)
        for stream in streams:
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            with _terminable():
                return super().main(*args, **extra)
        finally:
            try:
                sys.stdout.flush()
            except (OSError, ValueError, AttributeError):  # nobody reads, the disk is full, it was closed, or is None
                _drop_output()

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Reads the arguments before the command; without any, the help is shown."""
        if not args:
            return super().make_context(info_name, args, parent, **extra)
        with readable_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Reads the arguments of the command and runs it."""
        with readable_errors(), readable_warnings(), once():
            done = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return done


@contextmanager
def readable_errors() -> Iterator[None]:
    """Show what a user can mend as one line, with exit code 2; everything, if LEACE_FAST_DEBUG is set.

    What Python raises inside a library is a matter of what it was given; inside of this package it is a fault of ours:
    one line as well, with exit code 1, that says where to report it.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError as error:
        _drop_output()
        raise typer.Exit(128 + 13) from error  # as a program that SIGPIPE ends
    except KeyboardInterrupt as error:
        raise interrupted(error) from None
    except Exception as error:
        if os.environ.get("LEACE_FAST_DEBUG"):
            raise
        line, code = _line(error)
        typer.echo(f"error: {line}", err=True)
        raise typer.Exit(code) from error


def interrupted(error: KeyboardInterrupt, more: str = "") -> typer.Exit:
    """Say in one line that the command was ended from outside, and return the exit with the code of a shell."""
    word, code = ("terminated", 128 + 15) if isinstance(error, Terminated) else ("interrupted", 128 + 2)
    typer.echo(f"{word}{more}", err=True)
    return typer.Exit(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM, where nobody else minds it."""
    minded = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    if minded or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _drop_output() -> None:
    """Let what is still to be written to standard output go nowhere: Python would try again as it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def readable_warnings() -> Iterator[None]:
    """Show what a user is warned of as one line, and anything else as ever; all so, if LEACE_FAST_DEBUG is set."""
    with warnings.catch_warnings():
        as_ever = warnings.showwarning

        def show_line(message: Any, category: type[Warning], *where: Any) -> None:
            if issubclass(category, UserWarning) and not os.environ.get("LEACE_FAST_DEBUG"):
                typer.echo(f"warning: {_as_typed(' '.join(str(message).split()))}", err=True)
            else:
                as_ever(message, category, *where)

        warnings.showwarning = show_line
        yield


def _as_typed(said: str) -> str:
    """Return a sentence whose arguments of Python are options of the command line.

    >>> _as_typed("lora_bias=True keeps it")
    '--lora-bias keeps it'
    """
    return re.sub(r"\b((?:add|lora)_bias)=True\b", lambda found: f"--{found[1].replace('_', '-')}", said)


def _line(error: Any) -> tuple[str, int]:
    """An error in one line, and the exit code."""
    if isinstance(error, UsageError):
        command = ["leace-fast", *(error.ctx.command_path.split()[1:] if error.ctx else [])]
        return f"{' '.join(error.format_message().split()).rstrip('.')}: see {' '.join(command)} --help", 2
    said = _as_typed(" ".join(str(error).split()))
    said = said if len(said) <= MOST_CHARACTERS else f"{said[:MOST_CHARACTERS]} ..."
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError)):
        return said or type(error).__name__, 2
    where, name = _raised_in(error), f"{type(error).__name__}: {said}".rstrip(": ")
    if where.startswith(PACKAGE):
        return f"{name}: a fault of leace-fast; LEACE_FAST_DEBUG=1 shows where, please report it: {ISSUES}", 1
    return f"{name} (raised in {where}; LEACE_FAST_DEBUG=1 shows more)", 2


def _raised_in(error: Exception) -> str:
    """The file that raised an error."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame.tb_frame.f_code.co_filename if frame else ""


def screen() -> tuple[Console, Track]:
    """Return a console and a progress bar for its stages."""
    from .._progress import progress_bars

    with optional("tables need rich"):
        from rich.console import Console
    console = Console()
    with suppress(ImportError):
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what it reports of a model's weights is told as an error
    return console, progress_bars(console)


def show(console: Console, study: Study, out: Path, facts: dict[str, Any], concept: str, model_id: str) -> None:
    """Print a study's tables and write its folder."""
    from ..study import probe_table, stage_line, variant_table, verdict, write_study

    paths = write_study(study, out, facts, concept, model_id)
    console.print(probe_table(study))
    console.print(variant_table(study))
    for line in verdict(study):
        console.print(f"- {line}", highlight=False)
    console.print(f"\n[dim]{stage_line(study)}[/]", highlight=False)
    console.print("Written:", *(str(path) for path in paths), highlight=False, soft_wrap=True)
