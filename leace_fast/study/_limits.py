"""What a model takes: how many tokens a window may have, and which tokens it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..data import Window

LONGEST_WINDOW = 1024


def window_length(model: nn.Module, tokenizer: Any) -> int:
    """The most tokens of a window: as many as the model has positions for, at most `LONGEST_WINDOW`."""
    positions = [_behind_padding(module) for name, module in model.named_modules() if "position" in name]
    return min([told_length(model.config, tokenizer), *(most for most in positions if most)])


def told_length(config: Any, tokenizer: Any) -> int:
    """The length that a model's config and its tokenizer tell; None, 0 and -1 are no limits, as of XLNet."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    told = (getattr(text, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
    return int(min([LONGEST_WINDOW, *(limit for limit in told if isinstance(limit, (int, float)) and limit > 0)]))


def _behind_padding(module: nn.Module) -> int:
    """How many positions an embedding has that counts them behind the padding's number, as RoBERTa's; 0 for others."""
    if not isinstance(module, nn.Embedding) or module.padding_idx is None:
        return 0
    return module.num_embeddings - module.padding_idx - 1


def check_tokens(model: nn.Module, windows: Sequence[Window], source: str) -> None:
    """Raise ValueError for tokens that the model does not know: its tokenizer is another model's.

    Args:
        model: of transformers.
        windows: what it is going to run on.
        source: its name, for the error.
    """
    try:
        known = getattr(model.get_input_embeddings(), "num_embeddings", None)  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return
    most = max((int(window.input_ids.max()) for window in windows if len(window.input_ids)), default=0)
    if known is not None and most >= known:
        raise ValueError(
            f"the tokenizer of {source!r} gives token {most}, its model knows {known}, from 0 on: they do not belong "
            "together"
        )
