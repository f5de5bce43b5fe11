"""The jobs of `leace-fast fit`, `scrub` and `eval` on a user's model and labelled texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .._progress import Track, untracked
from ..data import batched, read_texts, split_texts, text_windows, whole_texts
from ..evaluation import Evaluation, evaluate, without_seen
from ..methods import moments_method
from ..models import LABELS
from ..scrubbing import Scrubber, scrub
from ._clock import Clock
from ._models import check_source, load_model_and_tokenizer
from ._records import Study
from ._study import run_study

HELD_OUT = 0.3
TOKENS_PER_BATCH = 8192
LONGEST_WINDOW = 1024


def study_texts(
    source: str,
    data: str | os.PathLike[str],
    *,
    text: str = "text",
    label: str = "label",
    sites: str | Iterable[str] = "norms",
    method: str = "leace",
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    track: Track = untracked,
) -> Study:
    """Study a Hugging Face model on texts with a label column; each token bears the label of its text.

    30 % of each class's texts are held out, by a hash of the text. Loss is measured where the model
    predicts the next token.

    Args:
        source: folder or hub id of the model.
        data, text, label: as in `read_texts`; of labels, one column.
        sites: as in `find_sites`.
        max_tokens: most tokens to fit on; whole texts are taken.
        device: where the model runs; by default a GPU if there is one.
        dtype: that the model runs in, one of `DTYPES`; "auto" is its own.

    Raises:
        FileNotFoundError, ValueError: the model or the data cannot be read, or do not fit.
    """
    moments_method(method)  # raises for a name that is of no use here
    clock = Clock()
    with clock.stage("load"):
        texts = read_batches(source, data, text=text, label=label, max_tokens=max_tokens, device=device, dtype=dtype)
    return run_study(
        texts.model,
        texts.fit,
        texts.held_out,
        class_names=texts.class_names[label],
        text_bytes=texts.text_bytes,
        sites=sites,
        method=method,
        track=track,
        clock=clock,
    )


class Batches(NamedTuple):
    """A model, and labelled texts for it."""

    model: Any
    fit: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    class_names: dict[str, tuple[str, ...]]  # by concept
    text_bytes: int  # that `labels` of the held-out batches score; 0 where the model predicts no next token


def read_batches(
    source: str,
    data: str | os.PathLike[str],
    *,
    text: str = "text",
    label: str | Sequence[str] = "label",
    last_token: bool = False,
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> Batches:
    """Load a model, and its batches of the texts to fit on and of those held out, by a hash of the text.

    Args:
        source, data, text, max_tokens, device, dtype: as in `study_texts`.
        label: as in `read_texts`; of several columns, the batches hold the labels by name.
        last_token: whether a text's label is that of its last token alone.

    Raises:
        FileNotFoundError, ValueError: the model or the data cannot be read, or do not fit.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
    check_source(source)
    fit, held_out = split_texts(read_texts(data, text, label), HELD_OUT)
    model, tokenizer, causal = load_model_and_tokenizer(source, device, dtype)
    length = _window_length(model.config, tokenizer)
    most = (max_tokens, None if max_tokens is None else round(max_tokens * HELD_OUT / (1 - HELD_OUT)))
    cut = text_windows if causal else whole_texts
    fit_windows, _ = cut(fit, tokenizer, length, most[0], last_token)
    test_windows, text_bytes = cut(held_out, tokenizer, length, most[1], last_token)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    size = max(1, TOKENS_PER_BATCH // length)
    to_fit, to_test = (
        [_by_concept(batch, list(fit.class_names)) for batch in batched(windows, size, pad)]
        for windows in (fit_windows, test_windows)
    )
    return Batches(model, to_fit, to_test, fit.class_names, text_bytes)


def _by_concept(batch: dict[str, Tensor], concepts: list[str]) -> dict[str, Any]:
    """The batch with the labels of its only concept, or those of several by name."""
    each = batch[LABELS].unbind(-1)
    return {**batch, LABELS: each[0] if len(each) == 1 else dict(zip(concepts, each, strict=True))}


def scrub_texts(batches: Batches, **options: Any) -> Scrubber:
    """Scrub a model on the batches to fit on, with the options of `scrub`."""
    inputs = [_inputs(batch) for batch in batches.fit]
    counts = {concept: len(names) for concept, names in batches.class_names.items()}
    return scrub(batches.model, inputs, num_classes=counts if len(counts) > 1 else sum(counts.values()), **options)


def evaluate_texts(batches: Batches, scrubber: Scrubber | None, track: Track = untracked) -> Evaluation:
    """Evaluate a model on the held-out batches; each other window of them trains the probes."""
    held_out = batches.held_out if batches.text_bytes else [_inputs(batch) for batch in batches.held_out]
    return evaluate(
        batches.model,
        [without_seen(batch, scrubber) for batch in held_out],  # windows of a few words occur in both parts
        scrubber,
        text_bytes=batches.text_bytes,
        track=track,
    )


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without the tokens to predict."""
    return {name: value for name, value in batch.items() if name != "labels"}


def _window_length(config: Any, tokenizer: Any) -> int:
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length, LONGEST_WINDOW)
    return min(limit for limit in limits if limit)
