"""Build the compiled kernels when torch and a compiler are at hand; everything else stands in pyproject.toml.

LEACE_FAST_EXT=1 makes a failure to build them an error, LEACE_FAST_EXT=0 leaves them out. Unset, a failure is
a warning and the install is pure Python: slower in places, and the same results.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings

from setuptools import setup

MINIMUM_TORCH = (2, 10)
SOURCES = ["csrc/bindings.cpp", "csrc/cpu/project.cpp"]
HEADERS = ["csrc/project.h", "csrc/cpu/number_formats.h", "csrc/cpu/project_rows.h"]

wanted = os.environ.get("LEACE_FAST_EXT", "")
if wanted not in ("", "0", "1"):
    raise SystemExit(f"LEACE_FAST_EXT is {wanted!r}, expected 1 (must build), 0 (leave out) or unset")


def give_up(reason: str) -> None:
    """Warn that the install is pure Python, or stop where the kernels were asked for."""
    if wanted == "1":
        raise SystemExit(f"LEACE_FAST_EXT=1, and the compiled kernels cannot be built: {reason}")
    warnings.warn(f"leace-fast is installed without its compiled kernels: {reason}", stacklevel=2)


def compile_flags() -> list[str]:
    """Return flags for optimised code that runs on any machine of this architecture."""
    if sys.platform == "win32":
        return ["/O2", "/std:c++20"]
    return ["-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi"]


def extension() -> dict:
    """Return the arguments of `setup` that build the kernels, or none."""
    if wanted == "0":
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        give_up(f"torch cannot be imported ({error}). Install torch first, then pip install --no-build-isolation")
        return {}
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MINIMUM_TORCH:
        give_up(f"torch is {torch.__version__}, expected {MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]} or newer")
        return {}

    class OptionalBuild(BuildExtension):
        """Turn a failed build into a pure-Python install."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # whatever the toolchain lacks: no compiler, no Python headers, ...
                give_up(f"{type(error).__name__}: {error}")
                self.extensions = []

    flags = compile_flags()
    # The oldest torch whose stable ABI is used; the build then serves that torch and all later ones.
    target = f"0x{MINIMUM_TORCH[0]:02x}{MINIMUM_TORCH[1]:02x}{0:012x}"
    kernels = CppExtension(
        "leace_fast._C",
        SOURCES,
        depends=HEADERS,
        define_macros=[("TORCH_TARGET_VERSION", target), ("LEACE_FAST_FLAGS", f'"{shlex.join(flags)}"')],
        extra_compile_args={"cxx": flags},
    )
    return {"ext_modules": [kernels], "cmdclass": {"build_ext": OptionalBuild}}


setup(**extension())
