"""What the command line refuses: `leace_fast.study`, where it loads models, and the folders that commands write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from leace_fast.cli._fold import check_weights
from leace_fast.cli._options import check_folder
from leace_fast.data import Window
from leace_fast.study import load_model, load_tokenizer
from leace_fast.study._limits import check_tokens
from refused.refusal import Refusal

TITLE = "Models and folders on the command line"


def llama() -> Any:
    """A tiny model; its library is imported when it is needed."""
    from tiny_models import build

    return build("llama", torch.float32)


def model(folder: Path, **changes: object) -> str:
    """A tiny model with a changed config."""
    llama().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def below_a_file(folder: Path) -> None:
    (folder / "file").write_text("")
    check_folder(folder / "file" / "out")


def damaged(folder: Path) -> None:
    source = model(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    load_model(source, "cpu")


def other_tokens(_: Path) -> None:
    check_tokens(llama(), [Window(torch.tensor([10**6]), 1, torch.tensor([0]))], "model")


def with_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    check_weights(folder)


REFUSALS = [
    Refusal("a model that lacks weights", "they would be random, and the erasers others at each run",
            lambda f: load_model(model(f, num_hidden_layers=9, layer_types=None), "cpu"),
            "which would be random", needs="transformers"),
    Refusal("a model whose files are damaged", "fetch it again", damaged, "cannot be loaded", needs="transformers"),
    Refusal("a model of an unknown type", "update transformers, or mend config.json",
            lambda f: load_model(model(f, model_type="llamma"), "cpu"), "cannot be loaded", needs="transformers"),
    Refusal("a model without a tokenizer", "texts need one",
            lambda f: load_tokenizer(model(f)), "the tokenizer of", needs="transformers"),
    Refusal("a tokenizer of another model", "its tokens would be out of the model's range, or mean others",
            other_tokens, "they do not belong together", needs="transformers"),
    Refusal("the meta device", "it holds no numbers", lambda f: load_model(model(f), "meta"), "no device 'meta' here"),
    Refusal("a folder to write below a file, on a read-only or a full disk", "found before any work is done",
            below_a_file, "name another"),
    Refusal("to fold into a folder with weights", "a loader could take those, which are not erased", with_weights,
            "holds weights already"),
]  # fmt: skip
