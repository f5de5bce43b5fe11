"""`export_lora`: erasers as a LoRA adapter in PEFT's format, for any stack that serves LoRA.

`W (I - L R) = W - (W L) R`: an eraser of rank k in front of a linear layer is a LoRA of rank k on it.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .._files import ordered, write_bytes
from .._folders import in_place_of
from ..erasers import MAX_COST_RATIO, Eraser
from ..models import Inside, bare_name, tap
from ._adapter import Adapter, Factors
from ._agreement import attached_distance, check_agrees, example_of, hooked_output, output_of, told, warn_if_far
from ._folding import check_not_folded
from ._plan import Plan, plan
from ._readers import Reader
from ._record import KEY, record_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class LoraReport:
    """What `export_lora` wrote.

    Attributes:
        folder: where the adapter lies.
        rank: the largest rank of a module.
        target_modules: as in the adapter's config.
        leak: the largest share of the concept's covariance that a module with the adapter still reads.
        damage: the most that rounding adds to the mean squared change of a site's rows, relative, on the example.
        cost_ratio: mean squared change of x over that of the affine eraser, by site.
        difference: norm of the output with the adapter less that of the same maps in hooks, over the latter's norm.
        from_attached: norm of the output with the adapter less that of the attached erasers, which keep every offset,
            over the norm of what attaching them changes in the output: 0 for the attached model, 1 for the clean one.
        lost_offset: sites whose linear map took the eraser's place.
    """

    folder: Path
    rank: int
    target_modules: tuple[str, ...]
    leak: float
    damage: float
    cost_ratio: dict[str, float]
    difference: float
    from_attached: float
    lost_offset: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.folder}: LoRA of rank {self.rank} on {', '.join(self.target_modules[:8])}"
            f"{' ...' if len(self.target_modules) > 8 else ''}; {self.leak:.1e} of the concept's covariance remains, "
            f"rounding adds {self.damage:.1e} to the change of x, which is at most {max(self.cost_ratio.values()):.4f} "
            f"of the affine erasers'; the output is {self.difference:.1e} from that of the same maps in hooks, and "
            f"{told(self.from_attached, self.lost_offset)}"
        )


def export_lora(
    model: nn.Module,
    erasers: Mapping[str, Eraser],
    folder: str | os.PathLike[str],
    example: Mapping[str, Any] | Tensor | None = None,
    *,
    lora_bias: bool = False,
    split: bool = True,
    dtype: torch.dtype | None = None,
    max_cost_ratio: float = MAX_COST_RATIO,
    base_model: str | None = None,
) -> LoraReport:
    """Write erasers as a LoRA adapter of `model`: `adapter_config.json` and `adapter_model.safetensors`.

    The metadata of the latter says what was done: the sites, layers and digests that `leace-fast inspect` prints.

    Most stacks refuse a LoRA with a bias or ignore it, so the linear map of `Eraser.without_offset` is exported. In
    16 bits R is rounded first, L refitted to it, and the product of L with the weight held in a high and a low part:
    rank 2k, and 3k where a rounded R would change x noticeably more.

    Args:
        model: the unquantised model; it is run, and not changed.
        erasers: by the name of the site.
        folder: made if it does not exist.
        example: a batch, as in `find_sites`; None for the model's own `dummy_inputs`.
        lora_bias: keep the offset in biases of the adapter, which PEFT itself reads; not where a mask of padding
            multiplies what the layer reads.
        split: False for plain factors of rank k, which in 16 bits leave 0.2 to 10 % of the concept.
        dtype: of the adapter; None for that of the weights.
        max_cost_ratio: refuse a linear map that changes x more than so many times the affine one.
        base_model: name of the model in the adapter's config; None for the model's own.

    Raises:
        ValueError: as in `fold_`; the model is folded, so that the adapter would be of other weights than the model's
            own name stands for; or a reader is neither an `nn.Linear` nor a `Conv1D`, which LoRA cannot adapt.
        TypeError: the model is no module.
        RuntimeError: the adapter does not do what the same maps in hooks do; nothing is written.

    Warns:
        UserWarning: the output is more than a fifth of the erasers' effect from that of the attached erasers.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3; https://github.com/huggingface/peft.

    >>> import tempfile
    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)).bfloat16()
    >>> eraser = Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = export_lora(model, {"0": eraser}, folder, torch.randn(3, 4).bfloat16())
    >>> report.rank, report.target_modules, report.leak
    (1, ('1',), 0.0)
    """
    inside = _exportable(model)
    model = inside.model
    erasers = {inside.name(site): each for site, each in erasers.items() if each.rank}  # of rank 0: nothing to serve
    example = example_of(model) if example is None else example
    plans = plan(model, erasers, example, add_bias=lora_bias, max_cost_ratio=max_cost_ratio, reuse_bias=False)
    for p in plans:
        for reader in p.readers:
            _check_adaptable(model, p.site, reader)
    clean = output_of(model, example)
    wanted, rows = _hooked(model, plans, example)
    lost = tuple(p.site for p in plans if p.lost_offset)
    attached = hooked_output(model, erasers, example) if lost else wanted
    adapters: dict[str, Adapter] = {}
    leak, damage = 0.0, 0.0
    for p in plans:
        kind = dtype or model.get_parameter(p.readers[0].parameter).dtype
        factors = Factors(p.eraser, rows[p.site], kind, split)
        damage = max(damage, factors.damage)
        for reader in p.readers:
            adapters[reader.module] = factors.adapter(_matrix(model, reader), lora_bias)
            leak = max(leak, adapters[reader.module].leak)
    with _adapted(model, adapters):
        got = output_of(model, example)
    kinds = {a.down.dtype for a in adapters.values()} | {
        model.get_parameter(f"{name}.weight").dtype for name in adapters
    }
    difference = check_agrees(kinds, clean, wanted, got)
    distance = attached_distance(clean, attached, got)
    warn_if_far(distance, plans, "lora_bias")
    config = _config(model, adapters, lora_bias, base_model)
    _write(Path(folder), adapters, config, record_of(model, plans, erasers, "lora"))
    return LoraReport(
        folder=Path(folder),
        rank=config["r"],
        target_modules=tuple(config["target_modules"]),
        leak=leak,
        damage=damage,
        cost_ratio={p.site: p.cost_ratio for p in plans},
        difference=difference,
        from_attached=distance,
        lost_offset=lost,
    )


def _write(folder: Path, adapters: Mapping[str, Adapter], config: dict[str, Any], record: dict[str, Any]) -> None:
    # whoever loads the adapter has the model in no wrapper
    served = {f"base_model.model.{bare_name(name)}": adapter for name, adapter in adapters.items()}
    tensors = {f"{name}.{key}": tensor for name, a in served.items() for key, tensor in a.tensors().items()}
    metadata = {"format": "pt", KEY: json.dumps(record, sort_keys=True)}
    with in_place_of(folder, CONFIG) as new:
        write_bytes(new / WEIGHTS, ordered(save(tensors, metadata=metadata)))
        write_bytes(new / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())


def _exportable(model: nn.Module) -> Inside:
    """The model inside; ValueError where it is folded or has adapters: the erasers' would be of other weights."""
    inside = Inside(model)
    check_not_folded(inside.model)
    layers: Any = sys.modules.get("peft.tuners.tuners_utils")
    for name, module in inside.model.named_modules() if layers else ():
        if isinstance(module, layers.BaseTunerLayer):
            raise ValueError(
                f"the model is wrapped by PEFT: {name!r} has an adapter, and the exported one would be of the weights "
                "without it; merge it first (model = wrapped.merge_and_unload()), save that model, and export for it"
            )
    return inside


def _check_adaptable(model: nn.Module, site: str, reader: Reader) -> None:
    module = model.get_submodule(reader.module)
    known = isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and reader.axis == -2)
    if not known or reader.parameter != f"{reader.module}.weight":
        raise ValueError(
            f"{site!r} is read by {reader.module!r}, a {type(module).__name__}, which a LoRA adapter cannot reach: "
            "fold_ can, or leave this site out"
        )


def _matrix(model: nn.Module, reader: Reader) -> Tensor:
    weight = model.get_parameter(reader.parameter).detach().double()
    return weight if reader.axis == -1 else weight.mT


def _hooked(model: nn.Module, plans: list[Plan], example: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The hooked model's output, and the rows of each site in float64 as they come to its eraser."""
    erasers, rows = {p.site: p.eraser for p in plans}, {}

    def erase(site: str, output: Tensor) -> Tensor:
        rows[site] = output.detach().reshape(-1, output.shape[-1]).double()
        return erasers[site](output)

    with tap(model, erasers, erase):
        return output_of(model, example), rows


@contextmanager
def _adapted(model: nn.Module, adapters: Mapping[str, Adapter]) -> Iterator[None]:
    """Add the adapters to the outputs of their modules, as a server of LoRA does."""

    def hook(adapter: Adapter) -> Any:
        return lambda module, args, output: output + adapter(args[0]).to(output.dtype)

    handles = []
    try:
        for name, adapter in adapters.items():
            handles.append(model.get_submodule(name).register_forward_hook(hook(adapter)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _config(
    model: nn.Module, adapters: Mapping[str, Adapter], lora_bias: bool, base_model: str | None
) -> dict[str, Any]:
    """The content of PEFT's adapter_config.json; alpha equals the rank everywhere, so that nothing is scaled."""
    ranks = {bare_name(name): len(adapter.down) for name, adapter in adapters.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: other for name, other in ranks.items() if other != rank}
    leaves = {name.rpartition(".")[2] for name in ranks}
    alike = {name for name in map(bare_name, dict(model.named_modules())) if name.rpartition(".")[2] in leaves}
    model_config, generates = getattr(model, "config", None), getattr(model, "can_generate", lambda: False)()
    tasks = {False: "CAUSAL_LM", True: "SEQ_2_SEQ_LM"}
    return {
        "peft_type": "LORA",
        "task_type": tasks[bool(getattr(model_config, "is_encoder_decoder", False))] if generates else None,
        "base_model_name_or_path": base_model or getattr(model, "name_or_path", None) or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": lora_bias,
        # leaf names where they mean these modules and no others
        "target_modules": sorted(leaves if alike == set(ranks) else ranks),
        "fan_in_fan_out": any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in adapters),
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
