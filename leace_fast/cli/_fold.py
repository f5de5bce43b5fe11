"""`leace-fast fold` and `leace-fast export-lora`: erasers in the weights of a model, or in an adapter for it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from .._extras import optional
from ..erasers import MAX_COST_RATIO
from ._options import COST, DEVICE, ERASERS, MODEL, check_folder
from ._running import screen


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
    from ..scrubbing import Scrubber
    from ..study import load_model

    screen()
    loaded, scrubber = load_model(model, device), Scrubber.from_pretrained(erasers)
    report = scrubber.fold_(loaded, add_bias=add_bias, max_cost_ratio=max_cost_ratio, keep_originals=False)
    loaded.save_pretrained(out)
    copy_tokenizer(model, out)
    typer.echo(f"{report}\nWritten: {out}")


def export_lora(
    model: MODEL,
    erasers: ERASERS,
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    lora_bias: Annotated[bool, typer.Option(help="Keep the offset in biases, which PEFT itself reads.")] = False,
    max_cost_ratio: COST = MAX_COST_RATIO,
    device: DEVICE = None,
) -> None:
    """Write erasers as a LoRA adapter in PEFT's format, for any stack that serves LoRA."""
    check_folder(out, model)
    from ..scrubbing import Scrubber
    from ..study import load_model

    screen()
    loaded, scrubber = load_model(model, device), Scrubber.from_pretrained(erasers)
    report = scrubber.export_lora(model=loaded, folder=out, lora_bias=lora_bias, max_cost_ratio=max_cost_ratio)
    typer.echo(str(report))


def copy_tokenizer(source: str, out: Path) -> None:
    """Save the tokenizer of a model, if it has one, beside another model."""
    with optional("tokenizers need transformers"):
        from transformers import AutoTokenizer
    with suppress(OSError, ValueError):
        AutoTokenizer.from_pretrained(source).save_pretrained(out)
