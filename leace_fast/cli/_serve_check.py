"""`leace-fast serve-check`: whether what a running server serves is erased."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ._options import DEVICE, ERASERS, JSON
from ._running import screen


def serve_check(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server: any with an OpenAI-style endpoint.")],
    erasers: ERASERS,
    model: Annotated[str, typer.Option(help="The clean model that it serves: its folder or hub id.")],
    name: Annotated[
        str | None,
        typer.Option(help="Ask for the eraser that the plugin for vLLM knows by this name.", show_default=False),
    ] = None,
    strength: Annotated[float, typer.Option(min=0.0, help="With --name: the strength to ask for; 1 erases.")] = 1.0,
    folded: Annotated[
        bool, typer.Option(help="It should serve the folded model, or the adapter of export-lora.")
    ] = False,
    served: Annotated[
        str | None, typer.Option(help="The name that the server has for the model; default: the first it lists.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="The key that it asks for.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts to ask after.")] = 12,
    device: DEVICE = None,
    as_json: JSON = False,
) -> None:
    """Tell whether a running server serves the erased model: exit code 0 if it does, 3 if it does not."""
    from ..scrubbing import Scrubber
    from ..serving import Server, check_served
    from ..study import load_model

    screen()
    scrubber = Scrubber.from_pretrained(erasers)
    more: dict[str, Any] = {}
    if name is not None:
        more["vllm_xargs"] = {"leace_fast": name} | ({"leace_fast_strength": strength} if strength != 1 else {})
        scrubber = Scrubber(
            {site: eraser.scaled(strength) for site, eraser in scrubber.items()},
            scrubber.model_id,
            scrubber.revision,
            scrubber.config,
        )
    elif strength != 1:
        raise ValueError("--strength is for an eraser that is asked for: give its --name too")
    server = Server(url, served, key, more)
    found = check_served(server, load_model(model, device), scrubber, prompts, folded)
    if as_json:
        said = {"verdict": found.verdict, "to_erased": found.to_erased, "to_clean": found.to_clean}
        typer.echo(json.dumps({**said, "effect": found.effect, "prompts": found.prompts}))
    else:
        typer.echo(str(found))
    if found.verdict != "erased":
        raise typer.Exit(3)
