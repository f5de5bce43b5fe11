"""The compiled libraries: found, loaded, or a sentence that says why not."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

MODULE = "leace_fast._C"  # the kernels on NumPy and DLPack, and what is known of the build
OPERATORS = Path(__file__).parents[1] / "_C_torch.so"  # the kernels as torch operators
HOW = "Reinstall with LEACE_FAST_EXT=1 set and pip's --no-build-isolation to see why"
NOT_BUILT = f"not built: the install found no compiler. {HOW}"
NO_OPERATORS = f"torch operators not built: the install found no torch. {HOW}"
OUTDATED = "built from other sources than these: install again, or python setup.py build_ext --inplace"
INTERFACE = 8  # one more with each change of what the libraries offer or take; setup.py compiles it in


@dataclass(frozen=True)
class Extension:
    """What is known of the compiled kernels.

    Attributes:
        present: whether `torch.ops.leace_fast` holds the operators.
        reason: if not, why not.
        build: the compiler, its flags, the instruction set in use, the torch it was built against.
        instruction_sets: those that the kernels may use, each of which holds those before it; the last is in use.
        features: what of the processor the kernels may use, present or not.
        devices: types of device that the operators have kernels for.
        module: `leace_fast._C`, the kernels on plain memory, or None.
        held_up: tells whether other programs lately held up the threads of the kernels.
    """

    present: bool
    reason: str = ""
    build: dict[str, str] = field(default_factory=dict)
    instruction_sets: tuple[str, ...] = ()
    features: dict[str, bool] = field(default_factory=dict)
    devices: frozenset[str] = frozenset()
    module: Any = None
    held_up: Callable[[], int] = field(default=lambda: 0, compare=False)


@functools.cache
def load_extension() -> Extension:
    """Load the compiled libraries once; afterwards `torch.ops.leace_fast` holds the operators.

    LEACE_FAST_EXT=0 in the environment leaves them out, to compare with plain torch; LEACE_FAST_CPU=avx512bf16, avx512,
    avx2 or baseline holds the kernels to a lesser instruction set.

    Raises:
        ValueError: LEACE_FAST_CPU names no instruction set that is compiled and that this processor has.

    >>> extension = load_extension()
    >>> extension.present or extension.reason != ""
    True
    """
    if os.environ.get("LEACE_FAST_EXT") == "0":
        return Extension(False, "switched off by LEACE_FAST_EXT=0")
    try:
        module: Any = importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        return Extension(False, NOT_BUILT if error.name == MODULE else f"built, but it does not load: {error}")
    except (ImportError, OSError) as error:
        return Extension(False, f"built, but it does not load: {error}")
    if getattr(module, "INTERFACE", 0) != INTERFACE:
        return Extension(False, OUTDATED)
    known = {
        "build": module.build_info(),
        "instruction_sets": tuple(module.instruction_sets()),
        "features": module.cpu_features(),
        "module": module,
    }
    if not OPERATORS.exists():
        return Extension(False, NO_OPERATORS, **known)
    try:
        torch.ops.load_library(OPERATORS)
    except (RuntimeError, OSError) as error:
        return Extension(False, f"built, but it does not load with torch {torch.__version__}: {error}", **known)
    library = ctypes.CDLL(str(OPERATORS))
    if not hasattr(library, "leace_fast_torch_interface") or library.leace_fast_torch_interface() != INTERFACE:
        return Extension(False, OUTDATED, **known)
    version, threads = library.leace_fast_torch_version, library.leace_fast_torch_threads
    version.restype, threads.restype = ctypes.c_char_p, ctypes.c_void_p
    known["build"]["torch"] = version().decode()
    library.leace_fast_torch_instruction_set()  # chosen now, as in the module: what the environment says may change
    module.use_threads(threads())
    known["held_up"] = library.leace_fast_torch_held_up
    return Extension(True, devices=frozenset(device for device in ("cpu", "cuda") if _has_kernels(device)), **known)


def _has_kernels(device: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("leace_fast::project", device.upper())
