"""`leace-fast doctor`."""

from __future__ import annotations

import json

import typer

from .._extras import optional
from ._options import JSON


def doctor(as_json: JSON = False) -> None:
    """Say what this installation has to work with: torch, CUDA, Triton, compiled kernels, versions."""
    from ..doctor import as_json as to_json
    from ..doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(to_json(findings), indent=2))
        return

    with optional("tables need rich"):
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    table = Table("", "", "", "", box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = "[green]yes[/]" if finding.present else "[yellow]no[/]"
        table.add_row(mark, finding.name, escape(finding.value), f"[dim]{escape(finding.note)}[/]")
    Console().print(table)
