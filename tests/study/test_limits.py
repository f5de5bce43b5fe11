"""What a model takes: windows that fit its positions, tokens that it knows, and weights that are all there."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import build

from leace_fast.data import Window
from leace_fast.study import load_model, load_tokenizer
from leace_fast.study._limits import LONGEST_WINDOW, check_tokens, told_length, window_length

SIZES: dict[str, Any] = {
    **{"vocab_size": 44, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"max_position_embeddings": 32, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
}
# models with positions that are counted behind the padding's number, and others; how many tokens each takes
POSITIONS = {"Roberta": 30, "XLMRoberta": 30, "Camembert": 30, "Esm": 30, "MPNet": 30, "Bert": 32, "Electra": 32}


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("told", [int(1e30), 512, math.inf, -1, None])
def test_a_window_fits_the_positions(name, told):
    config = getattr(transformers, f"{name}Config")(**SIZES, position_embedding_type="absolute")
    model = getattr(transformers, f"{name}Model")(config).eval()
    length = window_length(model, SimpleNamespace(model_max_length=told))
    assert length == POSITIONS[name]
    ids = torch.full((1, length), 5)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(input_ids=torch.full((1, length + 1), 5), attention_mask=torch.ones(1, length + 1))


@pytest.mark.parametrize(
    ("config", "told", "length"),
    [
        (transformers.XLNetConfig(), int(1e30), LONGEST_WINDOW),  # says -1 for no limit
        (transformers.XLNetConfig(), 64, 64),
        (transformers.GPT2Config(n_positions=128), None, 128),
        (transformers.T5Config(), 0, LONGEST_WINDOW),
        (SimpleNamespace(), math.nan, LONGEST_WINDOW),
        (SimpleNamespace(max_position_embeddings=None), -5, LONGEST_WINDOW),
        (SimpleNamespace(max_position_embeddings=100_000), 77.0, 77),
    ],
)
def test_what_says_no_limit_is_none(config, told, length):
    found = told_length(config, SimpleNamespace(model_max_length=told))
    assert found == length and isinstance(found, int)


def test_tokens_of_another_model_are_named():
    model = build("llama", torch.float32)
    known = model.get_input_embeddings().num_embeddings
    windows = [Window(torch.tensor([1, known - 1]), 1, torch.tensor([0, 0]))]
    check_tokens(model, windows, "a")
    more = Window(torch.tensor([known]), 1, torch.tensor([0]))
    with pytest.raises(ValueError, match=f"the tokenizer of 'a' gives token {known}, its model knows {known}"):
        check_tokens(model, [*windows, more], "a")


@pytest.mark.parametrize("architecture", ["llama", "bert", "gpt_neox"])
def test_a_model_that_lacks_weights_is_not_filled_at_random(tmp_path, architecture):
    build(architecture, torch.float32).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), "cpu") is not None
    config = json.loads((tmp_path / "config.json").read_text())
    more = {"num_hidden_layers": config["num_hidden_layers"] + 1, "layer_types": None}
    (tmp_path / "config.json").write_text(json.dumps({**config, **more}))
    with pytest.raises(ValueError, match="lacks .* weights that its config.json asks for, such as .*would be random"):
        load_model(str(tmp_path), "cpu")
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(name for name in weights if "norm" in name.lower())]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        load_model(str(tmp_path), "cpu")


def test_a_model_without_a_tokenizer_is_told_all_that_transformers_says(tmp_path):
    """The first line of that error opens a list, and says nothing without it."""
    transformers.LlamaConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_tokenizer(str(tmp_path))
    message = str(caught.value)
    assert "\n" not in message and not message.rstrip().endswith(":")


def test_a_mistyped_folder_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="there is no folder nomodel here, and on a model hub the model 'nomodel'"):
        load_model("nomodel", "cpu")
