"""`leace-fast gguf`: a folded model, or an adapter, as a file for llama.cpp."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..erasers import MAX_COST_RATIO
from ._options import COST, DEVICE, MODEL, check_folder
from ._running import screen


def gguf(
    model: MODEL,
    out: Annotated[Path, typer.Option(help="The file to write, such as folded.gguf.")],
    erasers: Annotated[Path | None, typer.Option(help="The folder of a scrubber, folded first.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="An adapter of MODEL, written in the model's place.")] = None,
    add_bias: Annotated[bool, typer.Option(help="Add biases, which keep the offset of every eraser.")] = False,
    max_cost_ratio: COST = MAX_COST_RATIO,
    dtype: Annotated[
        str, typer.Option(help="Of the matrices: float32, bfloat16 or float16; auto: that of the model.")
    ] = "auto",
    tokenizer: Annotated[bool, typer.Option(help="Write the tokenizer; without it prompts are token ids.")] = True,
    device: DEVICE = None,
) -> None:
    """Write a model with erasers folded into it, or an adapter, as a GGUF file for llama.cpp."""
    check_file(out)
    if erasers is not None and adapter is not None:
        raise ValueError("--erasers and --adapter: give one, for a folded model or for an adapter in GGUF")
    from ..integrations import write_gguf, write_lora_gguf
    from ..study import load_config, load_model, load_tokenizer

    screen()
    if adapter is not None:
        write_lora_gguf(adapter, out, load_config(model))
        typer.echo(f"Written: {out}\nllama-server --model MODEL.gguf --lora {out}")
        return
    from ..scrubbing import Scrubber

    loaded = load_model(model, device, dtype)
    if erasers is not None:
        scrubber = Scrubber.from_pretrained(erasers)
        report = scrubber.fold_(loaded, add_bias=add_bias, max_cost_ratio=max_cost_ratio, keep_originals=False)
        typer.echo(str(report))
    write_gguf(loaded, out, load_tokenizer(model) if tokenizer else None)
    typer.echo(f"Written: {out}\nllama-server --model {out}")


def check_file(out: Path) -> None:
    """Raise ValueError, before any work is done, where a file cannot be written."""
    if out.is_dir():
        raise ValueError(f"{out} is a folder, expected a file to write, such as {out / 'folded.gguf'}")
    if not out.parent.is_dir():
        raise ValueError(f"no folder {out.parent} for {out.name}: make it first, or name another file with --out")
    check_folder(out.parent)
    if out.exists() and not os.access(out, os.W_OK):
        raise ValueError(f"{out} cannot be written to: name another file with --out")
