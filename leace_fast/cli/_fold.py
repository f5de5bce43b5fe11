"""`leace-fast fold` and `leace-fast export-lora`: erasers in the weights of a model, or in an adapter for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError

from .._folders import in_place_of
from .._warnings import warn
from ..erasers import MAX_COST_RATIO
from ._options import COST, DEVICE, ERASERS, MODEL, check_folder
from ._running import screen

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf")


def fold(
    model: MODEL,
    erasers: ERASERS,
    out: Annotated[Path, typer.Option(help="Folder for the folded model.")],
    add_bias: Annotated[bool, typer.Option(help="Add biases with the flags of the config that make them.")] = False,
    max_cost_ratio: COST = MAX_COST_RATIO,
    device: DEVICE = None,
) -> None:
    """Fold erasers into a model's weights: a model like any other, with no cost at run time."""
    check_folder(out, model)
    check_weights(out)
    from ..scrubbing import Scrubber
    from ..study import load_model

    screen()
    loaded, scrubber = load_model(model, device), Scrubber.from_pretrained(erasers)
    report = scrubber.fold_(loaded, add_bias=add_bias, max_cost_ratio=max_cost_ratio, keep_originals=False)
    with in_place_of(out, last="config.json") as folder:
        try:
            loaded.save_pretrained(folder)
        except SafetensorError as error:
            raise OSError(f"{out} cannot be written: {error}") from error
        copy_tokenizer(model, folder, out)
    typer.echo(f"{report}\nWritten: {out}")


def export_lora(
    model: MODEL,
    erasers: ERASERS,
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    lora_bias: Annotated[bool, typer.Option(help="Keep the offset in biases, which PEFT itself reads.")] = False,
    with_model: Annotated[
        bool,
        typer.Option(
            help="Write the clean model beside the adapter, for servers that take one folder; one without PEFT serves "
            "the clean model then."
        ),
    ] = False,
    max_cost_ratio: COST = MAX_COST_RATIO,
    device: DEVICE = None,
) -> None:
    """Write erasers as a LoRA adapter in PEFT's format, for any stack that serves LoRA."""
    check_folder(out, model)
    if with_model:
        check_weights(out)
    from ..integrations import lora_commands
    from ..scrubbing import Scrubber
    from ..study import load_model

    screen()
    loaded, scrubber = load_model(model, device), Scrubber.from_pretrained(erasers)
    report = scrubber.export_lora(
        loaded, out, lora_bias=lora_bias, max_cost_ratio=max_cost_ratio, base_model=base_name(model)
    )
    copy_tokenizer(model, out, out)
    if with_model:
        loaded.save_pretrained(out)
    typer.echo(str(report))
    for stack, command in lora_commands(report, base_name(model), lora_bias).items():
        typer.echo(f"{stack}: {command}")


def base_name(model: str) -> str:
    """The name by which an adapter finds its model from anywhere: the whole path of a folder, or the hub's."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def check_weights(out: Path) -> None:
    """Raise ValueError for a folder that holds weights: a loader could take those, which are not erased."""
    there = sorted(path.name for path in out.iterdir() if path.suffix in WEIGHTS) if out.is_dir() else []
    if there:
        raise ValueError(
            f"{out} holds weights already ({there[0]}), which could be loaded in the place of the folded ones: name an "
            "empty folder with --out"
        )


def copy_tokenizer(source: str, folder: Path, out: Path) -> None:
    """Save the tokenizer of a model into a folder that is to be `out`; a warning, if none can be loaded."""
    from ..study import load_tokenizer

    try:
        tokenizer = load_tokenizer(source)
    except ValueError as error:
        warn(f"{out} holds no tokenizer: {error}")
    else:
        tokenizer.save_pretrained(folder)
