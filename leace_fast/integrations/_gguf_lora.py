"""`write_lora_gguf`: an adapter of `export_lora` as a LoRA in GGUF, for llama.cpp's --lora."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._schema import NOTHING, NUMBER, OBJECT, check_fields, parse_json
from ..folding import CONFIG, KEY, WEIGHTS
from ._gguf import write_file
from ._gguf_family import Family

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
PLAIN = {  # fields of PEFT's config that must be absent or like this: llama.cpp knows none of the others
    "lora_bias": False,
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
}


def write_lora_gguf(adapter: str | os.PathLike[str], path: str | os.PathLike[str], config: Any) -> None:
    """Write a LoRA adapter in PEFT's format as one GGUF file, in float32.

    What `export_lora` says in the adapter of the erasers and their model goes along, under `leace_fast`.

    Args:
        adapter: its folder.
        path: of the file; its folder must exist.
        config: of the model that the adapter is for, of transformers; type llama, mistral or qwen2.

    Raises:
        ImportError: the package gguf is missing.
        FileNotFoundError: there is no adapter in the folder, or no folder for the file.
        ValueError: a file of the adapter is damaged, or llama.cpp cannot do what it asks for: biases, scaled ranks,
            layers that are no plain products.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3;
        https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

    >>> write_lora_gguf("nowhere", "adapter.gguf", None)
    Traceback (most recent call last):
    FileNotFoundError: nowhere holds no adapter_config.json: pass a folder that export_lora wrote
    """
    folder = Path(adapter)
    settings, tensors, record = read_adapter(folder)
    for name, expected in PLAIN.items():
        if settings.get(name) not in (None, expected):
            advice = "export it without --lora-bias, or fold with --add-bias" if name == "lora_bias" else "merge it"
            raise ValueError(f"{name} of {folder} is {settings[name]!r}, which no LoRA of llama.cpp can do: {advice}")
    family = Family.of(config)
    alpha = float(settings["lora_alpha"])
    written: dict[str, Tensor] = {}
    for name in sorted(tensors):
        if not name.startswith(PREFIX) or not name.endswith((DOWN, UP)):
            raise ValueError(f"{folder / WEIGHTS} holds {name!r}, expected LoRA pairs of linear layers: merge it")
        if name.endswith(UP):
            continue
        module = name.removeprefix(PREFIX).removesuffix(DOWN)
        if (up := tensors.get(f"{PREFIX}{module}{UP}")) is None:
            raise ValueError(f"{folder / WEIGHTS} has no lora_B for {module!r}: it is damaged, write it again")
        own = float(_of_pattern(settings.get("alpha_pattern") or {}, module, alpha))
        target = family.name(f"{module}.weight")
        family.check_shapes(module, tensors[name], up)
        written[f"{target}.lora_a"] = tensors[name].float()
        # llama.cpp scales by one alpha over each rank
        written[f"{target}.lora_b"] = family.rows(module, up.float()) * (own / alpha)
    fields = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha, "general.file_type": 0}
    write_file(path, family.architecture, fields, written, record, torch.float32)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], str | None]:
    """Return the config, the tensors and, as JSON, the record of an adapter; ValueError where a file is damaged."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: pass a folder that export_lora wrote")
    try:
        settings = parse_json((folder / CONFIG).read_bytes())
        with safe_open(folder / WEIGHTS, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            record = (file.metadata() or {}).get(KEY)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"the adapter in {folder} is damaged ({error}): write it again, or fetch it again") from error
    try:
        check_fields(settings, {"lora_alpha": NUMBER, "alpha_pattern": OBJECT | NOTHING}, optional=["alpha_pattern"])
        if not all(
            _positive(each) for each in (settings["lora_alpha"], *(settings.get("alpha_pattern") or {}).values())
        ):
            raise ValueError("lora_alpha and alpha_pattern must hold positive numbers")
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is no config of a LoRA ({error}): write it again") from error
    return settings, tensors, record


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _of_pattern(pattern: Mapping[str, Any], module: str, default: float) -> Any:
    """What PEFT takes for a module: patterns are names, or their ends."""
    return next((value for key, value in pattern.items() if f".{module}".endswith(f".{key}")), default)
