"""The command line `leace-fast`. Each command imports its own machinery, so that none pays for another's."""

from __future__ import annotations

from .._extras import optional

with optional("the command line needs typer"):
    import typer

from ._demo import demo
from ._doctor import doctor
from ._eval import evaluate
from ._fit import fit
from ._fold import export_lora, fold
from ._running import Commands
from ._scrub import scrub
from ._serve_check import serve_check

__all__ = ["app"]

MODEL = "EleutherAI/pythia-70m"

app = typer.Typer(
    cls=Commands, help="Linear concept erasure for language models.", no_args_is_help=True, add_completion=False
)
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
        "serve-check",
        serve_check,
        [f"leace-fast serve-check http://localhost:8000 --erasers erasers --model {MODEL}"],
    ),
    ("doctor", doctor, ["leace-fast doctor --json"]),
):
    app.command(_name, epilog="\n\n".join(["For example:", *_examples]))(_command)
