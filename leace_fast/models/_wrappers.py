"""Wrappers that hold a whole model: the model inside, and the names of its modules without what wrappers put before.

DataParallel and DistributedDataParallel, FSDP, what `torch.compile` returns, checkpoint wrappers, averaged weights,
DeepSpeed and PEFT are known. They run the model that they hold, so that what acts inside it acts through them.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

# the attribute that holds the model, by the module and the name of the type; none is imported for the look
HOLDERS = {
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "CheckpointWrapper"): "_checkpoint_wrapped_module",
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
    ("deepspeed.runtime.engine", "DeepSpeedEngine"): "module",
}
LEADING = ("module.", "base_model.model.")  # also names of ordinary modules, so only at the start
# the last is of TransformerLens, which puts its own module in the place of each
ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_original_component")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside all wrappers that hold it; the model itself where there is none.

    >>> model = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(model)) is model and unwrapped(model) is model
    True
    """
    while (inner := _held(model)) is not None:
        model = inner
    return model


def inner_name(name: str) -> str:
    """The name that a module of a wrapped model has in the model inside.

    >>> inner_name("module._orig_mod.layers.0.norm"), inner_name("base_model.model.model.layers.0.norm")
    ('layers.0.norm', 'model.layers.0.norm')
    """
    name = bare_name(name)
    while lead := next((lead for lead in LEADING if f"{name}.".startswith(lead)), ""):
        name = f"{name}."[len(lead) :].removesuffix(".")
    return name


def bare_name(name: str) -> str:
    """The name of a module without what wrappers round single layers put into it.

    >>> bare_name("module.layers.0._orig_mod.norm")
    'module.layers.0.norm'
    """
    return ".".join(part for part in name.split(".") if part not in ANYWHERE)


def _held(model: nn.Module) -> nn.Module | None:
    """What a wrapper holds directly; None for a module that is no wrapper."""
    for kind in type(model).__mro__:
        if name := HOLDERS.get((kind.__module__, kind.__name__)):
            return getattr(model, name)
    peft: Any = sys.modules.get("peft")
    held: Any = model
    if peft is not None and isinstance(model, peft.PeftModel):
        return held.get_base_model()
    return held.base_model.model if peft is not None and isinstance(model, peft.PeftMixedModel) else None
