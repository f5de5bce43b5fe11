"""`leace-fast inspect`: what a file says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ._options import JSON

MOST_LAYERS = 4  # that are named of a site, without --json


def inspect(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Erasers, moments, a scrubber, an adapter, or GGUF.")],
    as_json: JSON = False,
) -> None:
    """Say what a file or folder holds: which erasers, of which sites and model, and what was done with them."""
    from ..integrations import inspect_file

    found = inspect_file(path)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    sites = found.pop("sites", {})
    for name, value in found.items():
        typer.echo(f"{name.replace('_', ' ')}: {_line(value)}")
    for site, facts in sites.items():
        typer.echo(f"{site}: {_line(facts)}")


def _line(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_line(each)}" for name, each in value.items() if each not in ("", None))
    if isinstance(value, list):
        more = f" and {len(value) - MOST_LAYERS} more" if len(value) > MOST_LAYERS else ""
        return f"{' '.join(map(str, value[:MOST_LAYERS]))}{more}"
    return str(value)
