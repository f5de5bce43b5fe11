"""Windows: texts as tokens, cut to the length that a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .._warnings import warn
from ..statistics import IGNORE
from ._texts import Texts, numbered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Window(NamedTuple):
    """A piece of one text that is scored with the context before it.

    Attributes:
        input_ids: (length,) int64.
        scored: how many tokens count, the last ones; those before are context.
        concept_labels: (length,) or (length, concepts) int64 class of each token, -100 where it has none.
        group: the number of the text, speaker or the like that it is of; None if it was not said.
    """

    input_ids: Tensor
    scored: int
    concept_labels: Tensor
    group: int | None = None


def text_windows(
    data: Texts,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    max_tokens: int | None = None,
    last_token: bool = False,
) -> tuple[list[Window], int]:
    """Cut whole texts into windows of at most `length` tokens and return them with the bytes of text they score.

    Each token bears its text's classes, or the last one alone; each window its text's group. From a text's second
    window on, one token of context comes first, so that each token is scored once. Texts are taken in order until the
    next one would pass `max_tokens` (at least one is).

    Args:
        data: as of `read_texts`.
        tokenizer: of the model; its start sign, or else its end sign, stands before each text; without, its first
            token is context.
        length: most tokens of a window, at least 2.
        max_tokens: most tokens of all texts; None for all.
        last_token: only a text's last token bears its classes.

    Raises:
        TypeError: a text is no string; it is numbered.
        ValueError: length is below 2 (one token of context, and one that is scored), or no tokenizer takes a text.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"<s>": 0, "she": 1, "ran": 2, "home": 3}, unk_token="<s>"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    >>> data = Texts(["she ran home"], [(1,)], {"label": ("he", "she")})
    >>> windows, text_bytes = text_windows(data, tokenizer, length=3)
    >>> [window.input_ids.tolist() for window in windows], text_bytes
    ([[0, 1, 2], [2, 3]], 12)
    """
    _check_length(length, 2)
    start = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    windows: list[Window] = []
    total = text_bytes = without = 0
    for text, labels, group in zip(data.texts, data.labels, numbered(data).groups, strict=True):
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if max_tokens is not None and windows and total + len(tokens) > max_tokens:
            break
        total += len(tokens)
        text_bytes += len(text.encode())
        if start is None and tokens:  # nothing comes before the first token: it is context, not scored
            text_bytes -= len(str(tokenizer.decode(tokens[:1])).encode())
        ids = torch.tensor(tokens if start is None else [start, *tokens], dtype=torch.int64)
        done = 1
        without += len(ids) < 2
        while done < len(ids):
            piece = ids[done - 1 : done - 1 + length]
            classes = torch.tensor(labels, dtype=torch.int64).repeat(len(piece), 1)
            done += len(piece) - 1
            if last_token:
                classes[: -1 if done == len(ids) else None] = IGNORE
            windows.append(Window(piece, len(piece) - 1, classes, group))
    _tell(without, len(data.texts))
    return windows, text_bytes


def whole_texts(
    data: Texts,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    max_tokens: int | None = None,
    last_token: bool = False,
) -> tuple[list[Window], int]:
    """Return one window a text, with the model's special tokens, cut to `length`; no bytes are scored.

    For models that predict no next token.

    Args:
        data, max_tokens, last_token: as in `text_windows`.
        tokenizer: of the model; its special tokens bear no class.
        length: most tokens of a window, at least 1.

    Raises:
        TypeError: a text is no string; it is numbered.
        ValueError: length is below 1, or no tokenizer takes a text.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"<s>": 0, "she": 1, "ran": 2, "home": 3}, unk_token="<s>"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    >>> data = Texts(["she ran home"], [(1,)], {"label": ("he", "she")})
    >>> windows, _ = whole_texts(data, tokenizer, length=2)
    >>> windows[0].input_ids.tolist(), windows[0].concept_labels.tolist()
    ([1, 2], [[1], [1]])
    """
    _check_length(length, 1)
    windows: list[Window] = []
    total = without = 0
    for text, labels, group in zip(data.texts, data.labels, numbered(data).groups, strict=True):
        found: Any = tokenizer(text, truncation=True, max_length=length, return_special_tokens_mask=True)
        ids, special = torch.tensor(found["input_ids"]), torch.tensor(found["special_tokens_mask"]).bool()
        if max_tokens is not None and windows and total + len(ids) > max_tokens:
            break
        total += len(ids)
        classes = torch.tensor(labels, dtype=torch.int64).repeat(len(ids), 1).masked_fill(special[:, None], IGNORE)
        without += bool(special.all())
        if last_token and not bool(special.all()):
            classes[: int((~special).nonzero()[-1])] = IGNORE
        windows.append(Window(ids, len(ids), classes, group))
    _tell(without, len(data.texts))
    return windows, 0


def _tell(without: int, texts: int) -> None:
    """Warn of texts of which nothing is left to bear a label."""
    if without:
        warn(
            f"{without} of {texts} texts have no token that could bear a label, as those of white space: they count not"
        )


def _check_length(length: int, least: int) -> None:
    if length < least:
        raise ValueError(f"length is {length}, expected at least {least} tokens a window")
