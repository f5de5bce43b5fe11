"""The command line `leace-fast`. Each command imports its own machinery, so that none pays for another's."""

from __future__ import annotations

from typing import Annotated

from .._extras import optional
from .._version import __version__

with optional("the command line needs typer"):
    import typer

from ._demo import demo
from ._doctor import doctor
from ._eval import evaluate
from ._fit import fit
from ._fold import export_lora, fold
from ._gguf import gguf
from ._inspect import inspect
from ._running import Commands
from ._scrub import scrub
from ._serve_check import serve_check

__all__ = ["app"]

MODEL, LLAMA = "EleutherAI/pythia-70m", "HuggingFaceTB/SmolLM2-135M"

app = typer.Typer(
    cls=Commands, help="Linear concept erasure for language models.", no_args_is_help=True, add_completion=False
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"leace-fast {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None: ...


# name, command, examples that its --help ends with; those of scrub, eval, fold and export-lora follow each other
for _name, _command, _examples in (
    ("demo", demo, ["leace-fast demo --out demo"]),
    ("fit", fit, [f"leace-fast fit {MODEL} --data texts.jsonl --out leace-fit", "leace-fast fit activations.npz"]),
    (
        "scrub",
        scrub,
        [
            f"leace-fast scrub {MODEL} --data texts.jsonl --out erasers",
            f"leace-fast scrub {MODEL} --data texts.jsonl --groups author --neutral ordinary.txt --out by-author",
            f"leace-fast scrub {MODEL} --data texts.jsonl --groups author --contrasts 5 --out for-fresh-authors",
        ],
    ),
    (
        "eval",
        evaluate,
        [
            f"leace-fast eval {MODEL} --data texts.jsonl --erasers erasers",
            f"leace-fast eval {MODEL} --data texts.jsonl --groups author --erasers by-author",
        ],
    ),
    ("fold", fold, [f"leace-fast fold {MODEL} --erasers erasers --out folded"]),
    ("export-lora", export_lora, [f"leace-fast export-lora {MODEL} --erasers erasers --out adapter"]),
    (
        "gguf",
        gguf,
        [
            f"leace-fast gguf {LLAMA} --erasers llama-erasers --add-bias --out folded.gguf",
            f"leace-fast gguf {LLAMA} --adapter llama-adapter --out adapter.gguf",
        ],
    ),
    ("inspect", inspect, ["leace-fast inspect erasers", "leace-fast inspect llama-adapter --json"]),
    (
        "serve-check",
        serve_check,
        [f"leace-fast serve-check http://localhost:8000 --erasers erasers --model {MODEL}"],
    ),
    ("doctor", doctor, ["leace-fast doctor --json"]),
):
    app.command(_name, epilog="\n\n".join(["For example:", *_examples]))(_command)
