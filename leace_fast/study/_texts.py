"""The jobs of `leace-fast fit`, `scrub` and `eval` on a user's model and labelled texts."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from .._progress import Track, untracked
from ..data import Texts, batched, read_texts, split_texts, text_windows, whole_texts
from ..evaluation import Evaluation, evaluate, without_seen
from ..methods import leace, moments_method
from ..models import GROUPS, LABELS
from ..scrubbing import Scrubber, scrub
from ..statistics import IGNORE
from ._clock import Clock
from ._limits import check_tokens, window_length
from ._models import check_source, load_model_and_tokenizer
from ._records import Study
from ._study import run_study

HELD_OUT = 0.3
TOKENS_PER_BATCH = 8192
MOST_GROUPS = 1024  # whose class sums are kept at each site: more are joined, which is as good to tell of fresh ones
MOST_SEEN = 0.1  # of held-out tokens that were fitted on: short windows of two texts may be alike
Contrasts = int | Literal["auto"]


def study_texts(
    source: str,
    data: str | os.PathLike[str],
    *,
    text: str = "text",
    label: str = "label",
    groups: str | None = None,
    sites: str | Iterable[str] = "norms",
    method: str = "leace",
    metric: Literal["all", "labelled"] = "all",
    neutral: str | os.PathLike[str] | None = None,
    contrasts: Contrasts = 0,
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    track: Track = untracked,
) -> Study:
    """Study a Hugging Face model on texts with a label column; each token bears the label of its text.

    30 % of each class's texts, or of the groups that they are of, are held out, by a hash. Loss is measured where the
    model predicts the next token.

    Args:
        source: folder or hub id of the model.
        data, text, label, groups: as in `read_texts`; of labels, one column.
        sites: as in `find_sites`.
        metric: as in `scrub`.
        neutral: a file of ordinary texts, which count in the metric.
        contrasts: as in `leace`.
        max_tokens: most tokens to fit on, and of neutral texts; whole texts are taken.
        device: where the model runs; by default a GPU if there is one.
        dtype: that the model runs in, one of `DTYPES`; "auto" is its own.

    Raises:
        FileNotFoundError, ValueError: the model or the data cannot be read, or do not fit.
    """
    moments_method(method)  # raises for a name that is of no use here
    clock = Clock()
    with clock.stage("load"):
        texts = read_batches(
            source,
            data,
            text=text,
            label=label,
            groups=groups,
            neutral=neutral,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
        )
    options: dict[str, Any] = {
        "sites": sites,
        "method": method,
        "contrasts": contrasts,
        "metric": metric,
        "track": track,
    }
    with clock.stage("scrub"):
        scrubber = scrub_texts(texts, **options)
    with clock.stage("scrub in one pass"):
        one_pass = scrub_texts(texts, mode="parallel", **options)
    return run_study(
        texts.model,
        {"site after site": scrubber, "in one pass": one_pass},
        texts.held_out,
        class_names=texts.class_names[label],
        text_bytes=texts.text_bytes,
        group=texts.group,
        track=track,
        clock=clock,
    )


class Batches(NamedTuple):
    """A model, and labelled texts for it, with the group of each sequence."""

    model: Any
    fit: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    class_names: dict[str, tuple[str, ...]]  # by concept
    text_bytes: int  # that `labels` of the held-out batches score; 0 where the model predicts no next token
    neutral: list[dict[str, Any]]  # texts without labels
    group: str  # what a group is, in words


def read_batches(
    source: str,
    data: str | os.PathLike[str],
    *,
    text: str = "text",
    label: str | Sequence[str] = "label",
    groups: str | None = None,
    neutral: str | os.PathLike[str] | None = None,
    last_token: bool = False,
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> Batches:
    """Load a model, and its batches of the texts to fit on and of those held out, by a hash of their groups.

    Args:
        source, data, text, groups, neutral, max_tokens, device, dtype: as in `study_texts`.
        label: as in `read_texts`; of several columns, the batches hold the labels by name.
        last_token: whether a text's label is that of its last token alone.

    Raises:
        FileNotFoundError, ValueError: the model or the data cannot be read, or do not fit.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
    check_source(source)
    fit, held_out = split_texts(read_texts(data, text, label, groups), HELD_OUT)
    ordinary = [] if neutral is None else [_neutral_texts(neutral, text)]
    model, tokenizer, causal = load_model_and_tokenizer(source, device, dtype)
    length = window_length(model, tokenizer)
    most = (max_tokens, None if max_tokens is None else round(max_tokens * HELD_OUT / (1 - HELD_OUT)))
    cut = text_windows if causal else whole_texts
    fit_windows, _ = cut(fit, tokenizer, length, most[0], last_token)
    test_windows, text_bytes = cut(held_out, tokenizer, length, most[1], last_token)
    check_tokens(model, [*fit_windows, *test_windows], source)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    size = max(1, TOKENS_PER_BATCH // length)
    to_fit, to_test = (
        [_by_concept(batch, list(fit.class_names)) for batch in batched(windows, size, pad)]
        for windows in (fit_windows, test_windows)
    )
    bare = [
        {name: value for name, value in _inputs(batch).items() if name not in (LABELS, GROUPS)}
        for texts in ordinary
        for batch in batched(cut(texts, tokenizer, length, max_tokens)[0], size, pad)
    ]
    return Batches(model, to_fit, to_test, fit.class_names, text_bytes, bare, "text" if groups is None else groups)


def _neutral_texts(path: str | os.PathLike[str], text: str) -> Texts:
    """Texts without labels; each line of a .txt file is one."""
    lines = os.fspath(path).endswith((".txt", ".txt.gz"))
    texts = read_texts(path, "text" if lines else text, None)
    if not texts.texts:
        raise ValueError(f"{os.fspath(path)} holds no text, expected some for --neutral")
    return texts


def _by_concept(batch: dict[str, Tensor], concepts: list[str]) -> dict[str, Any]:
    """The batch with the labels of its only concept, or those of several by name."""
    each = batch[LABELS].unbind(-1)
    return {**batch, LABELS: each[0] if len(each) == 1 else dict(zip(concepts, each, strict=True))}


def fit_of(method: str, contrasts: Contrasts = 0) -> Any:
    """A method as `scrub` takes it: its name, or `leace` with contrasts."""
    return functools.partial(leace, contrasts=contrasts) if contrasts else method


def scrub_texts(batches: Batches, *, method: str = "leace", contrasts: Contrasts = 0, **options: Any) -> Scrubber:
    """Scrub a model on the batches to fit on, and the neutral ones, with the options of `scrub`."""
    inputs = [{**_inputs(batch), GROUPS: batch[GROUPS] % MOST_GROUPS} for batch in batches.fit]
    counts = {concept: len(names) for concept, names in batches.class_names.items()}
    return scrub(
        batches.model,
        inputs,
        method=fit_of(method, contrasts),
        num_classes=counts if len(counts) > 1 else sum(counts.values()),
        neutral=batches.neutral,
        **options,
    )


def evaluate_texts(batches: Batches, scrubber: Scrubber | None, track: Track = untracked) -> tuple[Evaluation, str]:
    """Evaluate a model on the held-out batches, and say in words which rows its probes had.

    The probes are trained on half of the held-out groups and tested on the rest.

    Raises:
        ValueError: the erasers were fitted on these texts, or they are of one group.
    """
    if scrubber is not None:
        scrubber.check_model(batches.model)
    held_out = batches.held_out if batches.text_bytes else [_inputs(batch) for batch in batches.held_out]
    fresh = [without_seen(batch, scrubber) for batch in held_out]
    every, left = (sum(int((batch[LABELS] != IGNORE).sum()) for batch in part) for part in (held_out, fresh))
    if every - left > MOST_SEEN * every:
        raise ValueError(
            f"the erasers were fitted on {(every - left) / every:.0%} of the tokens that are held out here: a probe "
            "reads nothing in what was fitted, whatever it reads elsewhere. Give the --data, --text, --label and "
            "--groups that scrub was given, for the same texts to be held out, or --data that it has not seen"
        )
    found = {group for batch in fresh for group in batch[GROUPS][_has_labels(batch)].tolist()}
    if len(found) < 2:
        raise ValueError(
            f"the texts held out are of {len(found)} {batches.group}, expected 2 or more, one to train the probes and "
            "another to test them: give more texts, or name a column of more values with --groups"
        )
    note = f"fresh probes: trained on half of the held-out groups (each {batches.group} is one), tested on the rest"
    if left < every:
        note += f"; {every - left:,} of {every:,} held-out tokens were fitted on as well, and are left out"
    return evaluate(batches.model, fresh, scrubber, text_bytes=batches.text_bytes, track=track), note


def _has_labels(batch: Mapping[str, Any]) -> Tensor:
    """Which sequences have a label (batch,)."""
    return (batch[LABELS] != IGNORE).any(1)


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without the tokens to predict."""
    return {name: value for name, value in batch.items() if name != "labels"}
