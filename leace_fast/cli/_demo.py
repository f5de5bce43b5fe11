"""`leace-fast demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import check_folder
from ._running import screen, show


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the pictures and the erasers.")] = Path("demo"),
    assets: Annotated[
        Path | None, typer.Option(help="Folder with the model and the text; default: the package's.")
    ] = None,
) -> None:
    """Erase a concept from a small language model, and see what is left in fresh text. Takes a few minutes."""
    check_folder(out)
    from ..demo import ASSETS, CONCEPT, run_demo

    console, track = screen()
    console.print(f"Erasing {CONCEPT} of each token from a language model of Python code.\n")
    study, facts = run_demo(assets or ASSETS, track=track)
    show(console, study, out, facts, CONCEPT, "leace-fast demo model")
