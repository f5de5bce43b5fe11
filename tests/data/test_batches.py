"""Batches: packed, padded, and of windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leace_fast.data import Window, batched, pack, pad


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=7), max_size=12),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([None, 0]),
)
def test_packing_loses_nothing_but_the_end(sequences, length, rows, end):
    pairs = [(ids, [i % 3 for i in ids]) for ids in sequences]
    batches = list(pack(iter(pairs), length, rows, end))
    wanted = [token for ids in sequences for token in (ids if end is None else [*ids, end])]
    ids = torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist() if batches else []
    labels = torch.cat([batch["concept_labels"].flatten() for batch in batches]).tolist() if batches else []
    assert ids == wanted[: len(wanted) // length * length]
    assert labels == [-100 if token == 0 else token % 3 for token in ids]
    assert all(batch["input_ids"].shape == (rows, length) for batch in batches[:-1])


def test_padding_is_masked_and_has_no_class():
    (one, two) = pad([([1, 2, 3], [0, 1, 2]), ([4], [1]), ([5] * 9, [0] * 9)], length=4, batch_size=2, token=7)
    assert one["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert one["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert one["concept_labels"].tolist() == [[0, 1, 2], [1, -100, -100]]
    assert two["input_ids"].shape == (1, 4)


def test_sequences_without_tokens_are_no_rows():
    (batch,) = pad([([], []), ([7], [1]), ([], [])], length=4, batch_size=2)
    assert batch["input_ids"].tolist() == [[7]] and not list(pad([([], [])], length=4, batch_size=2))


@pytest.mark.parametrize("make", [pack, pad])
def test_labels_of_the_wrong_length_name_the_example(make):
    with pytest.raises(ValueError, match="example 1 has 3 tokens and 2 labels"):
        list(make([([1, 2], [0, 0]), ([1, 2, 3], [0, 0])], 4, 2))
    with pytest.raises(ValueError, match="length is 0"):
        list(make([], 0, 2))


def test_batches_hold_every_scored_token_once():
    windows = [Window(torch.arange(1, n + 1), n - 1, torch.full((n,), n % 3)) for n in (5, 9, 2, 7)]
    batches = list(batched(windows, 2, token=0))
    assert [batch["input_ids"].shape for batch in batches] == [(2, 9), (2, 5)]
    assert sum(int((batch["labels"] != -100).sum()) for batch in batches) == 4 + 8 + 1 + 6
    for batch in batches:
        kept = batch["labels"] != -100
        assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
        assert torch.equal(kept, batch["concept_labels"] != -100)
        assert torch.equal(batch["attention_mask"].bool(), batch["input_ids"] != 0)
    with pytest.raises(ValueError, match="batch_size 0, expected at least 1"):
        next(batched(windows, 0, token=0))


def test_a_tokenizer_without_a_token_to_pad_with_is_told_what_to_do():
    with pytest.raises(ValueError, match="token is None, expected the number of a token to pad with"):
        next(pad([([1, 2], [0, 1])], 8, 2, token=None))  # type: ignore[arg-type]


SEQUENCES = [([1, 2, 3], [0, 1, 2]), ([], []), ([4], [1]), ([5] * 4, [0] * 4)]


def test_groups_of_padded_and_of_packed_sequences():
    padded = list(pad(SEQUENCES, 8, 2, groups=[7, 8, 9, 7]))
    assert [batch["concept_groups"].tolist() for batch in padded] == [[7, 9], [7]]
    packed = list(pack(SEQUENCES, 3, 2, end=0, groups=iter([7, 8, 9, 7])))
    assert [batch["input_ids"].tolist() for batch in packed] == [[[1, 2, 3], [0, 0, 4]], [[0, 5, 5], [5, 5, 0]]]
    assert [batch["concept_groups"].tolist() for batch in packed] == [[[7, 7, 7], [7, 8, 9]], [[9, 7, 7], [7, 7, 7]]]
    assert all("concept_groups" not in batch for batch in (*pad(SEQUENCES, 8, 2), *pack(SEQUENCES, 3, 2)))


@pytest.mark.parametrize("make", [pack, pad])
@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1, 2, 3], "example 3 has no group, expected an integer of 0 or more for each example"),
        ([1, -2, 3, 4], "example 1 has the group -2"),
        ([1, 2, 3, 4, 5], "more groups than examples"),
    ],
)
def test_groups_that_do_not_fit_the_sequences(make, groups, message):
    with pytest.raises(ValueError, match=message):
        list(make(SEQUENCES, 4, 2, groups=groups))


def test_groups_of_windows():
    windows = [Window(torch.arange(1, n + 1), n - 1, torch.zeros(n, dtype=torch.int64), n % 3) for n in (5, 9, 2, 7)]
    batches = list(batched(windows, 3, token=0))
    assert [batch["concept_groups"].tolist() for batch in batches] == [[0, 1, 2], [2]]
    bare = [window._replace(group=None) for window in windows]
    assert all("concept_groups" not in batch for batch in batched(bare, 3, token=0))
    with pytest.raises(ValueError, match="some windows have a group and others have none"):
        next(batched([windows[0], bare[1]], 3, token=0))


@pytest.mark.parametrize("token", [None, -1, -100, 0.5, "<pad>", True])
def test_what_is_no_token_to_pad_with(token):
    with pytest.raises(ValueError, match="token is .*, expected the number of a token to pad with"):
        next(pad([([1, 2], [0, 1]), ([3], [0])], 8, 2, token=token))
    with pytest.raises(ValueError, match="token is .*, expected the number of a token to pad with"):
        next(batched([Window(torch.tensor([1, 2]), 1, torch.tensor([0, 1]))], 2, token=token))


@pytest.mark.parametrize("token", [0, 1, 3])
def test_the_mask_follows_the_length_and_not_the_token(token):
    """Where the end sign pads, as of GPT-2: it is masked behind a sequence and not inside."""
    (batch,) = pad([([1, 3, 1], [0, 1, 0]), ([3], [1])], 8, 2, token=token)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["concept_labels"].tolist() == [[0, 1, 0], [1, -100, -100]]


@pytest.mark.parametrize("labels", [[-100] * 4 + [1], [-100, -100, -100, 0, -100], [-100, -100, -100, 0, 1]])
def test_a_sequence_whose_labels_would_all_be_cut_off_is_named(labels):
    sequences = [([1, 2], [0, 1]), ([1, 2, 3, 4, 5], labels)]
    with pytest.raises(ValueError, match="example 1 has 5 tokens and its first label at token [34], and is cut to 3"):
        list(pad(sequences, length=3, batch_size=2))
    (batch,) = pad(sequences, length=5, batch_size=2)
    assert batch["concept_labels"][1].tolist() == labels


def test_a_sequence_that_keeps_a_label_or_has_none_is_cut():
    (batch,) = pad([([1, 2, 3, 4], [-100, 0, -100, 1]), ([1, 2, 3, 4], [-100] * 4)], length=2, batch_size=2)
    assert batch["concept_labels"].tolist() == [[-100, 0], [-100, -100]]


@pytest.mark.parametrize("make", [pack, pad])
@pytest.mark.parametrize(
    ("tokens", "labels", "what"),
    [
        ([1, 2], [0, 0.5], "the labels of example 0 hold 0.5 .float."),
        ([1, 2], [0, None], "the labels of example 0 hold None"),
        ([1, 2], ["a", "b"], "the labels of example 0 hold 'a'"),
        ([1.5, 2], [0, 1], "the tokens of example 0 hold 1.5"),
        (torch.tensor([1.0, 2.0]), [0, 1], "the tokens of example 0 are of torch.float32"),
        ([1, 2], torch.tensor([0, 1]).bfloat16(), "the labels of example 0 are of torch.bfloat16"),
    ],
)
def test_tokens_and_labels_are_not_rounded(make, tokens, labels, what):
    with pytest.raises(TypeError, match=f"{what}.*, expected integers"):
        list(make([(tokens, labels)], 2, 1))


@pytest.mark.parametrize("make", [pack, pad])
def test_tokens_and_labels_may_be_tensors_and_arrays(make):
    wanted = [batch["concept_labels"].tolist() for batch in make([([1, 2], [0, 1])], 2, 1)]
    for kind in (torch.tensor, np.array, lambda values: np.array(values, np.int8)):
        found = list(make([(kind([1, 2]), kind([0, 1]))], 2, 1))
        assert [batch["concept_labels"].tolist() for batch in found] == wanted
