"""The compiled kernels: found, loaded, or a sentence that says why not."""

from __future__ import annotations

import functools
import importlib
import os
from dataclasses import dataclass, field

import torch

MODULE = "leace_fast._C"
NOT_BUILT = (
    "not built: the install found no torch or no compiler. "
    "Reinstall with LEACE_FAST_EXT=1 set and pip's --no-build-isolation to see why"
)


@dataclass(frozen=True)
class Extension:
    """What is known of the compiled library: whether it is loaded, how it was built, or why it is absent."""

    present: bool
    reason: str = ""
    build: dict[str, str] = field(default_factory=dict)


@functools.cache
def load() -> Extension:
    """Load the compiled library once; afterwards `torch.ops.leace_fast` holds its operators.

    LEACE_FAST_EXT=0 in the environment leaves it out, to compare with plain torch.

    >>> extension = load()
    >>> extension.present or extension.reason != ""
    True
    """
    if os.environ.get("LEACE_FAST_EXT") == "0":
        return Extension(False, "switched off by LEACE_FAST_EXT=0")
    try:
        module = importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        if error.name != MODULE:
            return Extension(False, f"built, but it does not load: {error}")
        return Extension(False, NOT_BUILT)
    except (ImportError, OSError) as error:
        return Extension(False, f"built, but it does not load with torch {torch.__version__}: {error}")
    return Extension(True, build=module.build_info())
