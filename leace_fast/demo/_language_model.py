"""The demo's language model: its tokenizer, its scoring in bits per byte, and its token labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from .._extras import optional
from ..data import Window
from ..statistics import IGNORE
from ._corpus import BLANK, LETTERS, Module

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

START = "<|file|>"
START_ID = 0  # the special token comes first in the vocabulary
# One optional blank joins the word or sign after it; digits stand alone; the rest of the white space is one piece.
PIECES = r" ?_?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}_]+|_+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on `texts`."""
    with optional("tokenizers need transformers"):
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=START,
        pad_token=START,
        clean_up_tokenization_spaces=False,
    )


def token_labels(letters: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return the class of each token: that of its characters, -100 where they have none or several."""
    labels = []
    for start, end in offsets:
        found = set(letters[start:end]) - {BLANK}
        labels.append(LETTERS.index(found.pop()) if len(found) == 1 else IGNORE)
    return labels


def windows(
    module: Module, tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None
) -> Iterator[Window]:
    """Yield windows over one module in which each of its tokens is scored exactly once.

    Each window holds at most `length` tokens; from the second on, its first
    `length - stride` tokens are context only. The first token is the start sign.
    """
    stride = stride or length
    encoding = tokenizer(module.text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    ids = torch.tensor([tokenizer.bos_token_id, *encoding["input_ids"]])
    labels = torch.tensor([IGNORE, *token_labels(module.labels, encoding["offset_mapping"])])
    done = 1  # the start sign is given
    while done < len(ids):
        # One token of context at least: the last one scored before, so that no token is lost between windows.
        begin = 0 if done == 1 else max(done - (length - stride), 0) if stride < length else done - 1
        end = min(begin + length, len(ids))
        yield Window(ids[begin:end], end - done, labels[begin:end])
        done = end
