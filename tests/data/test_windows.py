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


@pytest.mark.parametrize("cut", [text_windows, whole_texts])
def test_windows_of_a_text_are_of_its_group(tokenizer, cut):
    texts = [row["text"] * (1 + row["id"] % 4) for row in ROWS]
    data = Texts([*texts, texts[3]], [(0,)] * 21, {"label": ("even", "odd")})
    windows, _ = cut(data, tokenizer, 12)
    assert len(windows) > 21 if cut is text_windows else len(windows) == 21
    wanted = [
        i for i, text in enumerate(data.texts) for w in cut(Texts([text], [(0,)], data.class_names), tokenizer, 12)[0]
    ]
    groups = {data.texts[i]: window.group for i, window in zip(wanted, windows, strict=True)}
    assert [window.group for window in windows] == [groups[data.texts[i]] for i in wanted]
    assert set(groups.values()) == set(range(20))
    named = data._replace(groups=[i % 2 for i in range(21)], group_names=["ann", "bob"])
    assert [window.group for window in cut(named, tokenizer, 12)[0]] == [i % 2 for i in wanted]


@pytest.mark.parametrize("cut", [text_windows, whole_texts])
def test_texts_without_labels_have_windows_without_classes(tokenizer, cut):
    windows, _ = cut(Texts(["a text of some words"], [()], {}), tokenizer, 12)
    assert windows[0].concept_labels.shape == (len(windows[0].input_ids), 0)
    assert windows[0].concept_labels.dtype == torch.int64


@pytest.mark.parametrize("cut", [text_windows, whole_texts])
def test_texts_without_a_token_are_told(cut):
    tokenizer = words()
    data = Texts(["she ran", "  ", "\n"], [(0,), (1,), (1,)], {"label": ("a", "b")})
    with pytest.warns(UserWarning, match="2 of 3 texts have no token that could bear a label"):
        windows, _ = cut(data, tokenizer, 8)
    labels = [label for window in windows for label in window.concept_labels.flatten().tolist()]
    assert set(labels) - {-100} == {0}


@pytest.mark.parametrize("cut", [text_windows, whole_texts])
@pytest.mark.parametrize("texts", [["she", None], ["she", "\ud83d"], ["she", 3]])
def test_what_no_tokenizer_takes_is_numbered(cut, texts):
    for groups in ((), [0, 1]):
        data = Texts(texts, [(0,), (1,)], {"label": ("a", "b")}, groups, ["x", "y"])
        with pytest.raises((TypeError, ValueError), match="text 1 (is|holds)"):
            cut(data, words(), 8)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special", [True, False])
def test_the_label_of_a_last_token_stays_where_a_text_is_cut(side, special):
    tokenizer = words(special)
    tokenizer.truncation_side = tokenizer.padding_side = side
    data = Texts(["she ran home and slept", "she"], [(1,), (0,)], {"label": ("a", "b")})
    for cut in (text_windows, whole_texts):
        windows, _ = cut(data, tokenizer, 4, last_token=True)
        labels = [label for window in windows for label in window.concept_labels.flatten().tolist()]
        assert sorted(label for label in labels if label >= 0) == [0, 1], cut


def words(special: bool = True):
    """A tokenizer of whole words, with a start and an end sign or with neither in its texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "she": 2, "ran": 3, "home": 4}, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        made.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
