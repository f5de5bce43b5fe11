"""Whole jobs of `leace-fast fit`: a study of a user's model and texts, or of activation shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from warnings import warn

import torch
from safetensors import SafetensorError
from torch import Tensor

from .._progress import Track, untracked
from ..data import NO_CLASS, SHARD_SUFFIXES, Shards, Texts, Window, batched, read_texts, split_texts, text_windows
from ..evaluation import Evaluation, evaluate, is_causal, linear_probe
from ..methods import CLASS_COVARIANCES, METHODS, ROWS, moments_method
from ..models import LABELS, multiplies
from ..scrubbing import Scrubber, scrub
from ..statistics import Moments
from ._study import PROBE_MEMORY, PROBE_ROWS, Clock, SiteResult, Study, run_study

HELD_OUT = 0.3
TOKENS_PER_BATCH = 8192
LONGEST_WINDOW = 1024
DTYPES = ("auto", "float32", "bfloat16", "float16")
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how the classes that AutoModelForCausalLM loads are named


def is_shards(source: str) -> bool:
    """Tell whether a path names activation shards: a shard file, or a folder that holds them and no model."""
    path = Path(source)
    if path.is_dir():
        return not (path / "config.json").exists() and any(p.suffix in SHARD_SUFFIXES for p in path.iterdir())
    return path.suffix in SHARD_SUFFIXES


def study_shards(
    path: str | os.PathLike[str], *, method: str = "leace", site: str = "activations", track: Track = untracked
) -> Study:
    """Fit one eraser on 70 % of the rows of activation shards, and probe the other rows before and after it.

    The rows held out are drawn at random, always the same ones. Methods that need class covariances, or passes over
    the rows, get them.

    Raises:
        FileNotFoundError, ValueError: as in `Shards`; an unknown method, or one that needs more; too few rows of a
            class.
    """
    needs = METHODS[method].needs if method in METHODS else ""
    fit_method = METHODS[method] if needs in (ROWS, CLASS_COVARIANCES) else moments_method(method)
    clock = Clock()
    with clock.stage("load"):
        shards = Shards(path)
        moments = Moments(shards.dim, len(shards.class_names), per_class=needs == CLASS_COVARIANCES)
    share = min(PROBE_ROWS, PROBE_MEMORY // (16 * shards.dim)) / max(shards.rows, 1)
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {"fit": [], "held_out": []}
    done = 0
    with clock.stage("record"):
        for x, y in track(shards, "record"):
            if bool((wrong := ~x.isfinite().all(1) & (y != -100)).any()):
                row = done + int(wrong.nonzero()[0])
                raise ValueError(f"row {row} of {path} holds NaN or Inf: leave it out, or label it -100")
            done += len(x)
            draw, sampled = torch.rand(2, len(x), generator=generator)
            fit = draw >= HELD_OUT
            moments.update(x, y, mask=fit)
            for name, side, part in (("fit", fit, 1 - HELD_OUT), ("held_out", ~fit, HELD_OUT)):
                kept = side & (y != -100) & (sampled < share / part)
                parts[name].append((x[kept], y[kept]))
    x, y = (torch.cat(part) for part in zip(*parts["fit"], strict=True))
    test_x, test_y = (torch.cat(part) for part in zip(*parts["held_out"], strict=True))
    if not len(y) or not len(test_y):
        raise ValueError(f"{shards.rows} rows are too few, expected enough to fit on some and hold out others")
    with clock.stage("fit"):
        eraser = fit_method(_RowsToFitOn(shards) if needs == ROWS else moments).with_site(site)
    with clock.stage("probe"):
        before = linear_probe(x, y, test_x, test_y)
        # in float64: a probe reads what float32 leaves of a column that was erased wholly, however little that is
        after = linear_probe(eraser(x.double()), y, eraser(test_x.double()), test_y)
    not_erased = eraser.report.not_erased if eraser.report else ()
    result = SiteResult(
        site, shards.dim, eraser.rank, before.accuracy, after.accuracy, after.constant, None, not_erased
    )
    rows = {"fit": moments.count, "probe": len(y), "probe_test": len(test_y)}
    return Study((result,), None, shards.class_names, rows, clock.seconds, {site: eraser})


class _RowsToFitOn:
    """The rows of shards with those held out labelled -100: the same draw on every pass."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for x, y in self._shards:
            held_out = torch.rand(2, len(x), generator=generator)[0] < HELD_OUT
            yield x.float(), y.masked_fill(held_out, -100)


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
    _check_source(source)
    fit, held_out = split_texts(read_texts(data, text, label), HELD_OUT)
    model, tokenizer, causal = _load(source, device, dtype)
    length = _window_length(model.config, tokenizer)
    most = (max_tokens, None if max_tokens is None else round(max_tokens * HELD_OUT / (1 - HELD_OUT)))
    cut = text_windows if causal else _whole_texts
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
    """Evaluate a model on the held-out batches, with probes that are trained on the others."""
    return evaluate(
        batches.model,
        batches.held_out if batches.text_bytes else [_inputs(batch) for batch in batches.held_out],
        scrubber,
        text_bytes=batches.text_bytes,
        probe_batches=[_inputs(batch) for batch in batches.fit],
        track=track,
    )


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without the tokens to predict."""
    return {name: value for name, value in batch.items() if name != "labels"}


def _check_source(source: str) -> None:
    path = Path(source)
    if path.is_dir() and not (path / "config.json").exists():
        raise ValueError(f"the folder {source} has no config.json and no activation shards, expected one or the other")
    if path.is_file():
        raise ValueError(f"{source} is a file, expected a model's folder, its hub id, or activation shards")
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise FileNotFoundError(f"no file or folder {source}, expected a model's folder, its hub id, or shards")


def _load(source: str, device: str | None, dtype: str) -> tuple[Any, Any, bool]:
    """Return (model, tokenizer, whether it predicts the next token)."""
    model = load_model(source, device, dtype)
    if model.device.type == "cpu" and not multiplies(model.dtype):
        slow = str(model.dtype).removeprefix("torch.")
        advice = "the model runs several times faster in float32 (--dtype float32), with twice the memory"
        warn(f"this processor has no products of {slow}: {advice}", stacklevel=2)
    if model.config.is_encoder_decoder:
        raise ValueError(f"{source} is an encoder-decoder: scrub it in Python, with leace_fast.scrub")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tokenizer of {source!r} cannot be loaded: {_first_line(error)}") from error
    model.config.use_cache = False
    return model, tokenizer, is_causal(model)


def load_model(source: str, device: str | None = None, dtype: str = "auto") -> Any:
    """Return a model of the class that was saved, in its own dtype, on a GPU if there is one and no other is named."""
    if dtype not in DTYPES:
        raise ValueError(f"no dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    _check_source(source)
    target = _device(device)
    try:
        import transformers
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    except ImportError as error:
        raise ImportError("models need transformers: pip install 'leace-fast[hf]'") from error
    try:
        config = AutoConfig.from_pretrained(source)
        causal = any(name.endswith(CAUSAL) for name in config.architectures or ())
        # The class that was saved: a bare AutoModel would report the head's weights as unexpected.
        saved = getattr(transformers, (config.architectures or [""])[0], AutoModel)
        model = (AutoModelForCausalLM if causal else saved).from_pretrained(source, dtype=dtype)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the model {source!r} cannot be loaded: {_first_line(error)}") from error
    model.to(target)  # type: ignore[arg-type]
    return model.eval()


def _device(name: str | None) -> torch.device:
    """The device of that name, a GPU if there is one and none is named; ValueError if it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise ValueError(f"no device {name!r} here ({_first_line(error)}), expected one of {here}") from error
    return device


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _window_length(config: Any, tokenizer: Any) -> int:
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length, LONGEST_WINDOW)
    return min(limit for limit in limits if limit)


def _whole_texts(
    data: Texts, tokenizer: Any, length: int, max_tokens: int | None, last_token: bool = False
) -> tuple[list[Window], int]:
    """Return one window a text, with the model's special tokens, cut to `length`; no bytes are scored."""
    windows: list[Window] = []
    total = 0
    for text, labels in zip(data.texts, data.labels, strict=True):
        found = tokenizer(text, truncation=True, max_length=length, return_special_tokens_mask=True)
        ids, special = torch.tensor(found["input_ids"]), torch.tensor(found["special_tokens_mask"]).bool()
        if max_tokens is not None and windows and total + len(ids) > max_tokens:
            break
        total += len(ids)
        classes = torch.tensor(labels).repeat(len(ids), 1).masked_fill(special[:, None], NO_CLASS)
        if last_token and not bool(special.all()):
            classes[: int((~special).nonzero()[-1])] = NO_CLASS
        windows.append(Window(ids, len(ids), classes))
    return windows, 0
