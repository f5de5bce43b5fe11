"""`write_gguf`: a folded model as a GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import optional
from ..folding import KEY, folded_record
from ..models import check_module, unwrapped
from ._gguf_family import Family
from ._gguf_tokenizer import vocabulary

DTYPE_OF_VECTORS = torch.float32  # llama.cpp reads norms and biases in no other dtype
KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}


def write_gguf(
    model: nn.Module,
    path: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model of the Llama family as one GGUF file, with the biases that folding gave it.

    What `fold_` did to the model is told in the file's metadata, under `leace_fast`; `inspect_file` reads it.

    Args:
        model: a causal model of transformers, of type llama, mistral or qwen2; folded, or clean.
        path: of the file; its folder must exist.
        tokenizer: the model's, if it is a byte-level BPE; None for prompts that are sent as token ids.
        dtype: of the matrices: float32, float16 or bfloat16; None for that of the model. Vectors are float32.

    Raises:
        ImportError: the package gguf is missing.
        TypeError: the model is no module, or dtype is another one.
        ValueError: llama.cpp would not compute what the model does, or has no place for a parameter; it is named.
        FileNotFoundError: there is no such folder.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

    >>> write_gguf(nn.Linear(2, 2), "model.gguf")
    Traceback (most recent call last):
    ValueError: a Linear has no config of transformers, expected a causal model: only these are written as GGUF
    """
    check_module(model)
    model = unwrapped(model)
    config = getattr(model, "config", None)
    if config is None:
        kind = type(model).__name__
        raise ValueError(
            f"a {kind} has no config of transformers, expected a causal model: only these are written as GGUF"
        )
    family = Family.of(config)
    dtype = dtype or next(parameter.dtype for parameter in model.parameters() if parameter.ndim > 1)
    if dtype not in KINDS:
        raise TypeError(f"dtype is {dtype}, expected float32, float16 or bfloat16: pass dtype=torch.float32")
    tensors = {family.name(name): family.rows(name.rpartition(".")[0], part) for name, part in _parameters(model)}
    if (factors := family.rope_factors(model)) is not None:
        tensors["rope_freqs.weight"] = factors
    fields: dict[str, Any] = {"general.name": str(getattr(config, "_name_or_path", "") or "model")}
    fields["general.file_type"] = FILE_TYPES[dtype]
    fields |= {f"{family.architecture}.{name}": value for name, value in family.fields().items()}
    fields |= {f"tokenizer.ggml.{name}": value for name, value in vocabulary(tokenizer, config.vocab_size).items()}
    write_file(path, family.architecture, fields, tensors, folded_record(model), dtype)


def write_file(
    path: str | os.PathLike[str],
    architecture: str,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any] | str | None,
    dtype: torch.dtype,
) -> None:
    """Write a GGUF file, whole or not at all.

    Args:
        path: of the file.
        architecture: of llama.cpp.
        fields: by their names in the file; integers, floats, booleans, strings, and lists of one of these.
        tensors: by their names in the file; vectors are written in float32.
        record: what was done to the model, if that is known; it goes under `leace_fast`.
        dtype: of the matrices.
    """
    gguf = load_gguf()
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path.name}: make it first")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".leace-fast-") as folder:
        whole = Path(folder) / "file.gguf"
        writer = gguf.GGUFWriter(whole, architecture)
        for name, value in fields.items():
            _add(writer, name, value)
        if record is not None:
            writer.add_string(KEY, record if isinstance(record, str) else json.dumps(record, sort_keys=True))
        for name, tensor in tensors.items():
            _add_tensor(gguf, writer, name, tensor, dtype if tensor.ndim > 1 else DTYPE_OF_VECTORS)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(whole, path)


def load_gguf() -> Any:
    """Return the package gguf."""
    with optional("GGUF files need gguf"):
        import gguf
    return gguf


def _parameters(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The parameters that a file holds: of tied ones that of the embedding alone."""
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_string(name, value)


def _add_tensor(gguf: Any, writer: Any, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    part = tensor.cpu().to(dtype).contiguous()
    if dtype == torch.bfloat16:  # numpy has none: as bytes, and what they are is said beside them
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, part.view(torch.uint8).numpy(), raw_dtype=kind)
    else:
        writer.add_tensor(name, part.numpy())
