"""`leace-fast fit`: the demo's study, of a user's model and texts or of activation shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._options import (
    DATA_HELP,
    DEVICE,
    DTYPE,
    LABEL,
    MAX_TOKENS,
    METHOD_HELP,
    OF_SHARDS,
    SITES,
    TEXT,
    check_folder,
    only,
)
from ._running import screen, show


def fit(
    source: Annotated[
        str, typer.Argument(metavar="MODEL_OR_SHARDS", help="A model's folder or hub id, or activation shards.")
    ],
    data: Annotated[Path | None, typer.Option(help=f"For a model. {DATA_HELP}")] = None,
    text: TEXT = "text",
    label: LABEL = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, the pictures and the erasers.")] = Path("leace-fit"),
    sites: SITES = None,
    method: Annotated[str, typer.Option(help=f"{METHOD_HELP}; of shards also {', '.join(OF_SHARDS)}.")] = "leace",
    max_tokens: MAX_TOKENS = None,
    device: DEVICE = None,
    dtype: DTYPE = "auto",
) -> None:
    """Fit erasers for your own model and labelled texts, or for activation shards, and measure them.

    The probes are trained on the rows that the erasers were fitted on.

    Shards are .safetensors or .npz files that hold x (rows, dim) and y (rows,), or .npy files in pairs:
    x.npy with y.npy, or NAME.x.npy with NAME.y.npy; one file or a folder of them.
    """
    check_folder(out, source)
    from ..study import is_shards, study_shards, study_texts

    concept = only(label)
    console, track = screen()
    if is_shards(source):
        options = {"--data": data, "--sites": sites, "--max-tokens": max_tokens, "--device": device}
        check_none(source, options | {"--dtype": None if dtype == "auto" else dtype})
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


def check_none(source: str, options: dict[str, Any]) -> None:
    """Raise ValueError where options for a model were given with shards."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(
            f"{source} holds activation shards, which carry their labels and need no model: leave "
            f"{', '.join(given)} out"
        )
