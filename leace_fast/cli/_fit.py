"""`leace-fast fit`: the demo's study, of a user's model and texts or of activation shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._options import (
    CONTRASTS,
    DATA_HELP,
    DEVICE,
    DTYPE,
    GROUPS,
    LABEL,
    MAX_TOKENS,
    METHOD_HELP,
    METRIC,
    NEUTRAL,
    OF_SHARDS,
    SITES,
    TEXT,
    check_folder,
    leace_options,
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
    groups: GROUPS = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, the pictures and the erasers.")] = Path("leace-fit"),
    sites: SITES = None,
    method: Annotated[str, typer.Option(help=f"{METHOD_HELP}; of shards also {', '.join(OF_SHARDS)}.")] = "leace",
    metric: METRIC = None,
    neutral: NEUTRAL = None,
    contrasts: CONTRASTS = None,
    max_tokens: MAX_TOKENS = None,
    device: DEVICE = None,
    dtype: DTYPE = "auto",
) -> None:
    """Fit erasers for your own model and labelled texts, or for activation shards, and measure them.

    30 % of the texts of each class, or of their groups, are held out: half of these train the probes, the rest test
    them.

    Shards are .safetensors or .npz files that hold x (rows, dim) and y (rows,), or .npy files in pairs:
    x.npy with y.npy, or NAME.x.npy with NAME.y.npy; one file or a folder of them. If they hold groups (rows,) too,
    beside .npy files in NAME.groups.npy, the rows are held out by group.
    """
    options = leace_options(method, metric, neutral, contrasts)
    check_folder(out, source)
    from ..study import is_shards, study_shards, study_texts

    concept = only(label)
    console, track = screen()
    if is_shards(source):
        of_models = {"--data": data, "--groups": groups, "--sites": sites, "--metric": metric, "--neutral": neutral}
        of_models |= {"--max-tokens": max_tokens, "--device": device, "--dtype": None if dtype == "auto" else dtype}
        check_none(source, of_models)
        study = study_shards(source, method=method, contrasts=options["contrasts"], track=track)
    elif data is None:
        raise ValueError(f"{source} is taken for a model, which needs texts: give --data FILE (.jsonl or .parquet)")
    else:
        study = study_texts(
            source,
            data,
            text=text,
            label=concept,
            groups=groups,
            sites=sites or "norms",
            method=method,
            neutral=neutral,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
            track=track,
            **options,
        )
    show(console, study, out, {"source": source, "data": str(data or source)}, repr(concept), source)


def check_none(source: str, options: dict[str, Any]) -> None:
    """Raise ValueError where options for a model were given with shards."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(
            f"{source} holds activation shards, which carry their labels and need no model: leave "
            f"{', '.join(given)} out"
        )
