"""The Triton kernels of a GPU: whether they can run there, and one set of them for all statistics of a kind."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch

from ._kind import Kind
from ._streams import Turns

if TYPE_CHECKING:
    from ..triton_kernels.block import BlockKernels

GPU_ROW_DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # of rows that the kernels take
DEVICES = ["cuda"]  # tests add the CPU, where Triton's interpreter runs the kernels
# One set of scratch memory for all statistics of a kind: they use it one after the other.
_KERNELS: WeakValueDictionary[tuple[Any, ...], BlockKernels] = WeakValueDictionary()


def serves(device: torch.device) -> bool:
    """Tell whether the kernels can run on a device: an NVIDIA GPU of compute capability 8.0 or later."""
    if device.type not in DEVICES or importlib.util.find_spec("triton") is None:
        return False
    return device.type != "cuda" or (torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0))


def kernels_for(kind: Kind, dtype: torch.dtype, device: torch.device) -> BlockKernels:
    """Return the kernels for rows of a dtype, those that other statistics of the kind use where there are such."""
    from ..triton_kernels.block import BlockKernels
    from ..triton_kernels.configs import update_config

    key = (kind, kind.precision, dtype, device)
    found = _KERNELS.get(key)
    if found is None:
        properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        capability = (properties.major, properties.minor) if properties else (9, 0)
        processors = properties.multi_processor_count if properties else 4
        found = BlockKernels(*kind.sizes, update_config(dtype, kind.precision, capability), device, processors)
        found.turns = Turns(device)
        with found.turns.take(found.memory):
            _KERNELS[key] = found
    return found
