"""What several commands take: the model, the data, the erasers and the folders, said once."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..methods import CLASS_COVARIANCES, METHODS, ROWS

PROBE_BYTES = 2**16  # that are written to see whether a folder can be
LABEL_COLUMN = "label"  # where none is named

MODEL = Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder or hub id.")]
DEVICE = Annotated[str | None, typer.Option(help="Where the model runs; default: a GPU if there is one.")]
DTYPE = Annotated[
    str, typer.Option(help="What the model runs in: float32, bfloat16 or float16; auto: what it was saved in.")
]
DATA_HELP = "Labelled texts: .jsonl, .jsonl.gz or .parquet."
DATA = Annotated[Path, typer.Option(help=DATA_HELP)]
TEXT = Annotated[str, typer.Option(help="The column of texts.")]
LABEL_HELP = f"strings, integers or booleans; default: {LABEL_COLUMN}."
LABEL = Annotated[list[str] | None, typer.Option(help=f"The column of labels: {LABEL_HELP}", show_default=False)]
GROUPS = Annotated[
    str | None,
    typer.Option(
        help="The column that says which speaker, author or document a text is of: a group is wholly fitted or wholly "
        "held out; default: each text is a group.",
        metavar="COLUMN",
        show_default=False,
    ),
]
METRIC = Annotated[
    str | None,
    typer.Option(
        help="The tokens on which least change is measured: all (the default), with a label or without, or labelled; "
        "for the method leace.",
        show_default=False,
    ),
]
NEUTRAL = Annotated[
    Path | None,
    typer.Option(
        help="Ordinary texts, which change least too: .jsonl, .jsonl.gz, .parquet, or .txt with one a line; no labels "
        "needed; for the method leace."
    ),
]
CONTRASTS = Annotated[
    str | None,
    typer.Option(
        help="So many directions more, in which the classes differ from group to group, or auto: less is left in fresh "
        "groups, more is changed; for the method leace.",
        metavar="NUMBER",
        show_default=False,
    ),
]
LAST_TOKEN = Annotated[bool, typer.Option(help="A text's label is that of its last token alone, not of all.")]
MAX_TOKENS = Annotated[int | None, typer.Option(min=1, help="Most tokens to fit on.")]
METHOD_HELP = ", ".join(name for name, method in METHODS.items() if not method.needs)
OF_SHARDS = [name for name, method in METHODS.items() if method.needs in (CLASS_COVARIANCES, ROWS)]
ERASERS = Annotated[Path, typer.Option(help="The folder of a scrubber.")]
SITES = Annotated[
    list[str] | None,
    typer.Option(
        help="Where to erase: norms (the default), residual, attention_out, mlp_out, module names or patterns; "
        "repeatable.",
        show_default=False,
    ),
]
COST = Annotated[
    float, typer.Option(help="Most that a map without an offset may change x, over the change of the affine one.")
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def only(columns: list[str] | None) -> str:
    """The one column of labels; ValueError for several, which a study and an evaluation do not know."""
    if columns and len(columns) > 1:
        given = ", ".join(columns)
        raise ValueError(f"one concept is measured at a time, got {given}: give one --label (scrub takes several)")
    return columns[0] if columns else LABEL_COLUMN


def leace_options(method: str, metric: str | None, neutral: Path | None, contrasts: str | None) -> dict[str, Any]:
    """The metric and the contrasts that were asked for; ValueError for another method, or where they are none."""
    given = {"--metric": metric, "--neutral": neutral, "--contrasts": contrasts}
    if method != "leace" and (names := [name for name, value in given.items() if value is not None]):
        raise ValueError(f"{', '.join(names)}: for the method leace alone, got the method {method!r}: leave one out")
    if metric not in (None, "all", "labelled"):
        raise ValueError(f"--metric is {metric!r}, expected all or labelled")
    if contrasts not in (None, "auto") and not contrasts.isdecimal():
        raise ValueError(f"--contrasts is {contrasts!r}, expected a number of directions, 0 or more, or auto")
    number = 0 if contrasts is None else "auto" if contrasts == "auto" else int(contrasts)
    return {"metric": metric or "all", "contrasts": number}


def check_folder(out: Path, model: str | None = None, option: str = "--out") -> None:
    """Raise ValueError, before any work is done, where a folder that is to be written cannot be, or is the model's.

    A file is written there and removed, with the folders that were made for it: permissions, names that are too long,
    read-only and full disks all show so.
    """
    another, missing = f"name another folder with {option}", []
    try:
        for path in (out, *out.absolute().parents):
            if path.exists():
                break
            missing.append(path)
        if not path.is_dir():
            raise ValueError(f"{path} is a file, expected a folder to write: {another}")
        if model and out.exists() and Path(model).exists() and out.samefile(model):
            raise ValueError(f"{out} is the model itself: {another}")
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".leace-fast-", dir=out) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
    except OSError as error:
        raise ValueError(f"{out} cannot be written to ({error.strerror}): {another}") from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
