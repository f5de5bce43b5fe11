"""Windows: texts as tokens, each of which is scored once."""

from __future__ import annotations

import pytest
import torch

from leace_fast.data import Texts, text_windows, whole_texts
from leace_fast.demo._language_model import train_tokenizer

ROWS = [{"text": f"text number {i}", "label": "odd" if i % 2 else "even", "id": i} for i in range(20)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([row["text"] for row in ROWS] * 3, 300)


@pytest.mark.parametrize("start", [True, False])
def test_each_token_is_scored_once(tokenizer, start):
    data = Texts(
        [row["text"] * (1 + row["id"]) for row in ROWS], [(row["id"] % 2,) for row in ROWS], {"label": ("even", "odd")}
    )
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    try:
        if not start:
            tokenizer.bos_token = tokenizer.eos_token = None
        windows, text_bytes = text_windows(data, tokenizer, 16)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in data.texts]
        first = [] if start else [tokenizer.decode(tokens[:1]) for tokens in ids]
    finally:
        tokenizer.bos_token, tokenizer.eos_token = bos, eos
    scored = torch.cat([window.input_ids[-window.scored :] for window in windows])
    assert scored.tolist() == [i for tokens in ids for i in (tokens if start else tokens[1:])]
    assert text_bytes == sum(map(len, data.texts)) - sum(map(len, first))
    assert max(len(window.input_ids) for window in windows) <= 16


def test_whole_texts_are_taken_up_to_max_tokens(tokenizer):
    data = Texts([row["text"] for row in ROWS], [(row["id"] % 2,) for row in ROWS], {"label": ("even", "odd")})
    sizes = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in data.texts]
    windows, text_bytes = text_windows(data, tokenizer, 64, max_tokens=sum(sizes[:3]) + 1)
    assert len(windows) == 3
    assert text_bytes == sum(len(text) for text in data.texts[:3])
    assert len(text_windows(data, tokenizer, 64, max_tokens=1)[0]) == 1


@pytest.mark.parametrize(("cut", "length", "least"), [(text_windows, 1, 2), (text_windows, 0, 2), (whole_texts, 0, 1)])
def test_windows_that_are_too_short_are_refused(tokenizer, cut, length, least):
    data = Texts(["a text"], [(0,)], {"label": ("even", "odd")})
    with pytest.raises(ValueError, match=f"length is {length}, expected at least {least} "):
        cut(data, tokenizer, length)
