"""Changes to a model's weights, biases and config that can be undone to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._ops import ROW_DTYPES


class Edits:
    """What was changed in one model, and what was there before, which is kept in host memory.

    Nothing here holds the model itself, so that a record of edits does not keep it alive.
    """

    def __init__(self) -> None:
        self._originals: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._added: dict[str, bool] = {}  # bias -> whether the module had an empty place for it
        self._flags: list[tuple[Any, str, Any]] = []
        self._tied: dict[str, str] = {}

    @property
    def bytes_kept(self) -> int:
        """Host memory that the originals take."""
        return sum(tensor.nbytes for tensor in self._originals.values())

    @torch.no_grad()
    def write(self, model: nn.Module, name: str, value: Tensor) -> None:
        """Write a parameter in place."""
        parameter = model.get_parameter(name)
        if name not in self._added:
            self._originals.setdefault(name, parameter.detach().to("cpu", copy=True))
        parameter.copy_(value)
        self._versions[name] = parameter._version

    def add_bias(self, model: nn.Module, name: str, shape: Iterable[int]) -> None:
        """Give a module a bias of zeros, in the dtype and on the device of its other parameters."""
        module, leaf = _place(model, name)
        like = next(module.parameters(recurse=False))
        self._added[name] = leaf in module._parameters
        bias = nn.Parameter(torch.zeros(*shape, dtype=like.dtype, device=like.device), like.requires_grad)
        module.register_parameter(leaf, bias)
        self._versions[name] = bias._version

    def set_flag(self, config: Any, name: str, value: Any) -> None:
        """Set an attribute of a config."""
        self._flags.append((config, name, getattr(config, name)))
        setattr(config, name, value)

    def untie(self, model: nn.Module, name: str, tied_to: str) -> None:
        """Give a module a weight of its own that it shared with another."""
        module, leaf = _place(model, name)
        shared = module._parameters[leaf]
        assert shared is not None
        self._tied[name] = tied_to
        module._parameters[leaf] = nn.Parameter(shared.detach().clone(), shared.requires_grad)

    def check_unchanged(self, model: nn.Module) -> None:
        """Raise ValueError if an edited parameter was changed since, or is gone."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, version in self._versions.items():
            now, then = parameters.get(name), self._originals.get(name)
            if now is None or now._version != version or (then is not None and now.dtype != then.dtype):
                raise ValueError(
                    f"{name!r} was changed after it was folded (trained, loaded or converted): unfolding would undo "
                    "that too; load the model again instead"
                )

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Put back everything as it was."""
        for name, original in self._originals.items():
            if name not in self._tied:
                model.get_parameter(name).copy_(original)
        for name, empty in self._added.items():
            module, leaf = _place(model, name)
            if empty:
                module.register_parameter(leaf, None)
            else:
                del module._parameters[leaf]
        for name, tied_to in self._tied.items():
            module, leaf = _place(model, name)
            module._parameters[leaf] = model.get_parameter(tied_to)
        for config, name, value in reversed(self._flags):
            setattr(config, name, value)


def add_biases(model: nn.Module, edits: Edits, wanted: Iterable[str]) -> None:
    """Add the biases wanted, of zeros; in a model with a config, by the flags that make them, with all they make.

    So the model saves and loads like any other: a flag such as `attention_bias` also adds biases that nobody asked
    for, which stay zero.

    Raises:
        ValueError: no flag of the config adds these biases, or a module without a config cannot take one.
    """
    missing = set(wanted)
    config = getattr(model, "config", None)
    if config is None:
        for name in sorted(missing):
            module, leaf = _place(model, name)
            if not isinstance(module, nn.Linear) or leaf != "bias":
                raise ValueError(f"{name!r} cannot be added: {type(module).__name__} knows no bias")
            edits.add_bias(model, name, [module.out_features])
        return
    text = config.get_text_config()
    for owner in [config] if text is config else [config, text]:
        for flag, value in list(vars(owner).items()):
            if "bias" not in flag or value is not False or not missing:
                continue
            added = _added_by(model, owner, flag)
            if missing & added.keys() and all("bias" in name.rpartition(".")[2] for name in added):
                edits.set_flag(owner, flag, True)
                for name, shape in added.items():
                    edits.add_bias(model, name, shape)
                missing -= added.keys()
    if missing:
        raise ValueError(
            f"no flag of {type(config).__name__} adds {', '.join(sorted(missing)[:3])}: saved with these biases, the "
            "model would load without them; leave add_bias=False, which folds the linear map and needs none"
        )


def _added_by(model: nn.Module, config: Any, flag: str) -> dict[str, list[int]]:
    """The parameters that a flag of the config adds, by building such a model without memory."""
    before = getattr(config, flag)
    setattr(config, flag, True)
    try:
        with torch.device("meta"):
            twin = type(model)(copy.deepcopy(getattr(model, "config")))  # noqa: B009
    finally:
        setattr(config, flag, before)
    known = dict(model.named_parameters())
    return {name: list(parameter.shape) for name, parameter in twin.named_parameters() if name not in known}


def check_weight(model: nn.Module, name: str) -> Tensor:
    """Return a parameter that can be written; ValueError names one that cannot."""
    parameter = model.get_parameter(name)
    if type(parameter.data) is not Tensor or parameter.dtype not in ROW_DTYPES:
        kind = f"{type(parameter.data).__name__} of {parameter.dtype}"
        raise ValueError(f"{name!r} is a {kind}, expected a plain floating tensor: fold before quantising or sharding")
    if parameter.is_inference():
        raise ValueError(f"{name!r} was made in inference mode and cannot change: load the model outside of it")
    if parameter.is_meta:
        raise ValueError(f"{name!r} is on the meta device (offloaded): load the model into memory to fold it")
    return parameter


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, leaf = name.rpartition(".")
    return model.get_submodule(module), leaf
