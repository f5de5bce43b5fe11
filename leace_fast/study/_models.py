"""A user's model and its tokenizer, loaded, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .._extras import optional
from .._warnings import warn
from ..evaluation import is_causal
from ..models import multiplies

DTYPES = ("auto", "float32", "bfloat16", "float16")
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how the classes that AutoModelForCausalLM loads are named


def check_source(source: str) -> None:
    """Raise ValueError or FileNotFoundError for what is neither the folder nor the hub id of a model."""
    path = Path(source)
    if path.is_dir() and not (path / "config.json").exists():
        raise ValueError(f"the folder {source} has no config.json and no activation shards, expected one or the other")
    if path.is_file():
        raise ValueError(f"{source} is a file, expected a model's folder, its hub id, or activation shards")
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise FileNotFoundError(f"no file or folder {source}, expected a model's folder, its hub id, or shards")


def load_model_and_tokenizer(source: str, device: str | None, dtype: str) -> tuple[Any, Any, bool]:
    """Return (model, tokenizer, whether it predicts the next token)."""
    model = load_model(source, device, dtype)
    if model.device.type == "cpu" and not multiplies(model.dtype):
        slow = str(model.dtype).removeprefix("torch.")
        advice = "the model runs several times faster in float32 (--dtype float32), with twice the memory"
        warn(f"this processor has no products of {slow}: {advice}")
    if model.config.is_encoder_decoder:
        raise ValueError(f"{source} is an encoder-decoder: scrub it in Python, with leace_fast.scrub")
    tokenizer = load_tokenizer(source)
    model.config.use_cache = False
    return model, tokenizer, is_causal(model)


def load_tokenizer(source: str) -> Any:
    """Return a model's tokenizer; ValueError if it has none that can be loaded."""
    with optional("tokenizers need transformers"):
        from transformers import AutoTokenizer
    with _loading(f"the tokenizer of {source!r}", source):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def load_config(source: str) -> Any:
    """Return a model's config alone; ValueError if it cannot be loaded."""
    check_source(source)
    with optional("models need transformers"):
        from transformers import AutoConfig
    with _loading(f"the config of {source!r}", source):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


def load_model(source: str, device: str | None = None, dtype: str = "auto") -> Any:
    """Return a model of the class that was saved, in its own dtype, on a GPU if there is one and no other is named.

    Raises:
        FileNotFoundError, ValueError: there is no such model, device or dtype, the model cannot be loaded, or lacks
            weights.
    """
    if dtype not in DTYPES:
        raise ValueError(f"no dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    check_source(source)
    target = _device(device)
    with optional("models need transformers"):
        import transformers
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    with _loading(f"the model {source!r}", source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        causal = any(name.endswith(CAUSAL) for name in config.architectures or ())
        # The class that was saved: a bare AutoModel would report the head's weights as unexpected.
        saved = getattr(transformers, (config.architectures or [""])[0], AutoModel)
        loader: Any = AutoModelForCausalLM if causal else saved
        model, found = loader.from_pretrained(source, dtype=dtype, trust_remote_code=False, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"the model {source!r} lacks {len(missing)} weights that its config.json asks for, such as {missing[0]!r}, "
            "which would be random: fetch it again, or mend its config"
        )
    model.to(target)  # type: ignore[arg-type]
    return model.eval()


@contextmanager
def _loading(what: str, source: str) -> Iterator[None]:
    """Turn whatever a broken folder raises inside transformers into a ValueError that names it."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # KeyError, AttributeError, SafetensorError and others, as the file is broken
        missing = "" if Path(source).exists() else f"there is no folder {source} here, and on a model hub "
        raise ValueError(f"{missing}{what} cannot be loaded: {_first_line(error)}") from error


def _device(name: str | None) -> torch.device:
    """The device of that name, a GPU if there is one and none is named; ValueError if it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device).tolist()  # which the meta device refuses: it holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise ValueError(f"no device {name!r} here ({_first_line(error)}), expected one of {here}") from error
    return device


def _first_line(error: Exception) -> str:
    """Return the first line of what an error says, or all of it where that line opens a list."""
    lines = str(error).strip().splitlines()
    line = next(iter(lines), "")
    if line.rstrip().endswith(":"):  # a list follows, without which the line says nothing
        line = " ".join(map(str.strip, lines))
    return line if line and isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {line}".rstrip(": ")
