"""A user's folder: tiny models, labelled texts and activations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run, texts
from safetensors.torch import save_file
from tiny_models import build

from leace_fast.demo._language_model import train_tokenizer


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, texts(60))))
    tokenizer = train_tokenizer([row["body"] for row in texts(60)], 400)
    for name, architecture in (("model", "llama"), ("encoder", "bert"), ("with_biases", "gpt_neox")):
        model = build(architecture, torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))
        # New rows all start at the mean of the old ones: no model could tell their words apart.
        torch.nn.init.normal_(model.get_input_embeddings().weight, generator=torch.Generator().manual_seed(0))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (3000,), generator=generator)
    x = torch.randn(3000, 8, generator=generator) + 3 * y[:, None]
    save_file({"x": x, "y": y}, folder / "acts.safetensors")
    (folder / "shards").mkdir()
    for i in range(2):
        np.savez(folder / "shards" / f"{i}.npz", x=x[i::2].numpy(), y=np.array(["no", "yes"])[y[i::2].numpy()])
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="session")
def fitted(workplace):
    arguments = ("--data", workplace / "data.jsonl", "--text", "body", "--label", "kind", "--out", workplace / "fitted")
    result = run("fit", workplace / "model", *arguments)
    assert result.exit_code == 0, result.output
    return workplace / "fitted" / "erasers"


@pytest.fixture(scope="session")
def two_concepts(workplace):
    """Texts of a kind and a size; some have no size, and one of these no kind either."""
    rows: list[dict[str, Any]] = [{**row, "size": ["small", "big"][i // 2 % 2]} for i, row in enumerate(texts(120))]
    for row in rows:
        row["body"] += " tiny tiny" if row["size"] == "small" else " huge huge"
    rows[3]["size"], rows[4]["size"], rows[4]["kind"] = None, None, ""
    path = workplace / "two.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
