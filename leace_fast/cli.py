"""The command line `leace-fast`. Each command imports its own machinery, so that none pays for another's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ._progress import Track
    from .study import Study

LABEL_COLUMN = "label"  # where none is named

app = typer.Typer(help="Linear concept erasure for language models.", no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Linear concept erasure for language models."""


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Say what this installation has to work with: torch, CUDA, Triton, compiled kernels, versions."""
    from .doctor import as_json as to_json
    from .doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(to_json(findings), indent=2))
        return

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "", "", "", box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = "[green]yes[/]" if finding.present else "[yellow]no[/]"
        table.add_row(mark, finding.name, escape(finding.value), f"[dim]{escape(finding.note)}[/]")
    Console().print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the pictures and the erasers.")] = Path("demo"),
    assets: Annotated[
        Path | None, typer.Option(help="Folder with the model and the text; default: the package's.")
    ] = None,
) -> None:
    """Erase a concept from a small language model, and see what is left and what it costs. Takes about 80 seconds."""
    with readable_errors():
        check_folder(out)
        from .demo import ASSETS, CONCEPT, run_demo

        console, track = screen()
        console.print(f"Erasing {CONCEPT} of each token from a language model of Python code.\n")
        study, facts = run_demo(assets or ASSETS, track=track)
        show(console, study, out, facts, CONCEPT, "leace-fast demo model")


LABEL = Annotated[
    list[str] | None,
    typer.Option(help="The column of labels: strings, integers or booleans; default: label.", show_default=False),
]
DTYPE = Annotated[
    str, typer.Option(help="What the model runs in: float32, bfloat16 or float16; auto: what it was saved in.")
]
LABELS = Annotated[
    list[str] | None,
    typer.Option(
        help="A column of labels: strings, integers or booleans; repeatable: the union of the concepts is erased; "
        "default: label.",
        show_default=False,
    ),
]


@app.command()
def fit(
    source: Annotated[
        str, typer.Argument(metavar="MODEL_OR_SHARDS", help="A model's folder or hub id, or activation shards.")
    ],
    data: Annotated[Path | None, typer.Option(help="Texts for a model: .jsonl, .jsonl.gz or .parquet.")] = None,
    text: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    label: LABEL = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, the pictures and the erasers.")] = Path("leace-fit"),
    sites: Annotated[
        list[str] | None, typer.Option(help="Where to erase: module names or patterns; repeatable.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="leace, orth, mean_projection, inlp, ace, switch, ...; of shards also alf_qleace, rlace, median."
        ),
    ] = "leace",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to fit on.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the model runs; default: a GPU if there is one.")] = None,
    dtype: DTYPE = "auto",
) -> None:
    """Fit erasers for your own model and labelled texts, or for activation shards, and measure them.

    Shards are .safetensors or .npz files that hold x (rows, dim) and y (rows,), or .npy files in pairs:
    x.npy with y.npy, or NAME.x.npy with NAME.y.npy; one file or a folder of them.
    """
    with readable_errors():
        check_folder(out)
        from .study import is_shards, study_shards, study_texts

        concept = only(label)
        console, track = screen()
        if is_shards(source):
            options = {"--data": data, "--sites": sites, "--max-tokens": max_tokens, "--device": device}
            options["--dtype"] = None if dtype == "auto" else dtype
            if given := [name for name, value in options.items() if value is not None]:
                raise ValueError(
                    f"{source} holds activation shards, which carry their labels and need no model: leave "
                    f"{', '.join(given)} out"
                )
            study = study_shards(source, method=method, track=track)
        elif data is None:
            raise ValueError(f"{source} is taken for a model, which needs texts: give --data FILE (.jsonl or .parquet)")
        else:
            study = study_texts(
                source,
                data,
                text=text,
                label=concept,
                sites=sites or "norms",
                method=method,
                max_tokens=max_tokens,
                device=device,
                dtype=dtype,
                track=track,
            )
        show(console, study, out, {"source": source, "data": str(data or source)}, repr(concept), source)


MODEL = Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder or hub id.")]
ERASERS = Annotated[Path, typer.Argument(metavar="ERASERS", help="The folder of a scrubber.")]
OUT = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")]
DEVICE = Annotated[str | None, typer.Option(help="Where the model runs; default: a GPU if there is one.")]
COST = Annotated[
    float, typer.Option(help="Most that a map without an offset may change x, over the change of the affine one.")
]


@app.command()
def fold(
    model: MODEL,
    erasers: ERASERS,
    out: OUT,
    add_bias: Annotated[bool, typer.Option(help="Add biases with the flags of the config that make them.")] = False,
    max_cost_ratio: COST = 1.1,
    device: DEVICE = None,
) -> None:
    """Fold erasers into a model's weights: a model like any other, with no cost at run time."""
    with readable_errors():
        check_folder(out)
        from .scrubbing import Scrubber
        from .study import load_model

        screen()
        if out.exists() and Path(model).exists() and out.samefile(model):
            raise ValueError(f"{out} is the model itself: give another folder for the folded one")
        loaded, scrubber = load_model(model, device), Scrubber.from_pretrained(erasers)
        report = scrubber.fold_(loaded, add_bias=add_bias, max_cost_ratio=max_cost_ratio, keep_originals=False)
        loaded.save_pretrained(out)
        copy_tokenizer(model, out)
        typer.echo(f"{report}\nWritten: {out}")


@app.command()
def export_lora(
    model: MODEL,
    erasers: ERASERS,
    out: OUT,
    lora_bias: Annotated[bool, typer.Option(help="Keep the offset in biases, which PEFT itself reads.")] = False,
    max_cost_ratio: COST = 1.1,
    device: DEVICE = None,
) -> None:
    """Write erasers as a LoRA adapter in PEFT's format, for any stack that serves LoRA."""
    with readable_errors():
        check_folder(out)
        from .scrubbing import Scrubber
        from .study import load_model

        screen()
        loaded, scrubber = load_model(model, device), Scrubber.from_pretrained(erasers)
        typer.echo(scrubber.export_lora(out, loaded, lora_bias=lora_bias, max_cost_ratio=max_cost_ratio))


DATA = Annotated[Path, typer.Option(help="Texts: .jsonl, .jsonl.gz or .parquet.")]
TEXT = Annotated[str, typer.Option(help="The column of texts.")]
LAST = Annotated[bool, typer.Option(help="A text's label is that of its last token alone, not of all.")]
TOKENS = Annotated[int | None, typer.Option(min=1, help="Most tokens to fit on.")]
MODEL_OPTION = Annotated[str, typer.Option(metavar="MODEL", help="A model's folder or hub id.")]


@app.command()
def scrub(
    model: MODEL_OPTION,
    data: DATA,
    out: Annotated[Path, typer.Option(help="Folder for the erasers.")] = Path("leace-scrub"),
    text: TEXT = "text",
    label: LABELS = None,
    last_token: LAST = False,
    sites: Annotated[
        list[str] | None,
        typer.Option(help="norms, residual, attention_out, mlp_out, module names or patterns; repeatable."),
    ] = None,
    method: Annotated[str, typer.Option(help="leace, orth, mean_projection or another that reads moments.")] = "leace",
    mode: Annotated[
        str, typer.Option(help="sequential: one site after another; parallel: in one pass.")
    ] = "sequential",
    buffer: Annotated[str, typer.Option(help="Memory in which forward passes wait; beyond it, a file.")] = "8GiB",
    checkpoint: Annotated[Path | None, typer.Option(help="Folder to go on from after an interruption.")] = None,
    max_tokens: TOKENS = None,
    device: DEVICE = None,
    dtype: DTYPE = "auto",
) -> None:
    """Scrub concepts from every layer of a model: fit an eraser at each site on what the earlier ones leave.

    30 % of the texts of each class are held out, by a hash of the text, for `leace-fast eval` on the same data. A text
    without a label of one concept counts for the others.
    """
    with readable_errors():
        check_folder(out)
        from .study import read_batches, scrub_texts

        console, track = screen()
        batches = read_batches(
            model,
            data,
            text=text,
            label=label or LABEL_COLUMN,
            last_token=last_token,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
        )
        try:
            scrubber = scrub_texts(
                batches,
                sites=sites or "norms",
                method=method,
                mode=mode,
                buffer=buffer,
                checkpoint=checkpoint,
                track=track,
            )
        except KeyboardInterrupt:
            kept = (
                f": the same command goes on from {checkpoint}" if checkpoint else "; --checkpoint would have kept it"
            )
            typer.echo(f"interrupted{kept}", err=True)
            raise typer.Exit(130) from None
        scrubber.save_pretrained(out)
        console.print(f"{scrubber}\nWritten: {out}", highlight=False, markup=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    model: MODEL_OPTION,
    data: DATA,
    erasers: Annotated[Path | None, typer.Option(help="The folder of a scrubber; none for the clean model.")] = None,
    text: TEXT = "text",
    label: LABEL = None,
    last_token: LAST = False,
    max_tokens: TOKENS = None,
    device: DEVICE = None,
    dtype: DTYPE = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Measure what a scrubbed model loses on held-out texts, and what can still be read inside it."""
    with readable_errors():
        import dataclasses

        from .scrubbing import Scrubber
        from .study import evaluate_texts, read_batches

        _, track = screen()
        scrubber = Scrubber.from_pretrained(erasers) if erasers else None
        batches = read_batches(
            model,
            data,
            text=text,
            label=only(label),
            last_token=last_token,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
        )
        found = evaluate_texts(batches, scrubber, track)
        if as_json:
            probes = {site: probe._asdict() for site, probe in found.probes.items()}
            report = {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
            typer.echo(json.dumps({**dataclasses.asdict(found), **report, "probes": probes}, indent=1))
        else:
            typer.echo(str(found))


def only(columns: list[str] | None) -> str:
    """The one column of labels; ValueError for several, which a study and an evaluation do not know."""
    if columns and len(columns) > 1:
        given = ", ".join(columns)
        raise ValueError(f"one concept is measured at a time, got {given}: give one --label (scrub takes several)")
    return columns[0] if columns else LABEL_COLUMN


def check_folder(out: Path) -> None:
    """Raise ValueError, before any work is done, where a folder that is to be written cannot be."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder to write: name another with --out or OUT")


def copy_tokenizer(source: str, out: Path) -> None:
    """Save the tokenizer of a model, if it has one, beside another model."""
    from transformers import AutoTokenizer

    with suppress(OSError, ValueError):
        AutoTokenizer.from_pretrained(source).save_pretrained(out)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Show what a user can mend as one line, with exit code 2; everything, if LEACE_FAST_DEBUG is set."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        if os.environ.get("LEACE_FAST_DEBUG"):
            raise
        typer.echo(f"error: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        raise typer.Exit(2) from error


def screen() -> tuple[Console, Track]:
    """Return a console and a progress bar for its stages."""
    from rich.console import Console

    from ._progress import progress_bars

    console = Console()
    with suppress(ImportError):
        from transformers.utils import logging

        logging.disable_progress_bar()
    return console, progress_bars(console)


def show(console: Console, study: Study, out: Path, facts: dict[str, Any], concept: str, model_id: str) -> None:
    """Print a study's tables and write its folder."""
    from .study import loss_table, probe_table, stage_line, verdict, write_study

    paths = write_study(study, out, facts, concept, model_id)
    console.print(probe_table(study))
    if study.loss:
        console.print(loss_table(study.loss))
    for line in verdict(study):
        console.print(f"- {line}", highlight=False)
    console.print(f"\n[dim]{stage_line(study)}[/]", highlight=False)
    console.print("Written:", *(str(path) for path in paths), highlight=False, soft_wrap=True)
