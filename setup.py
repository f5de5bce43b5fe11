"""Build the compiled kernels with ninja, where there is a compiler; everything else stands in pyproject.toml.

Two libraries: `leace_fast._C`, which needs no torch, and `leace_fast/_C_torch.so`, the operators of torch, built where
torch can be imported, with those for GPUs where that torch has CUDA and nvcc is at hand. LEACE_FAST_EXT=1 makes a
failure to build them an error, LEACE_FAST_EXT=0 leaves them out. Unset, a failure is a warning and the install does
without: slower in places, and the same results. TORCH_CUDA_ARCH_LIST names the GPUs, as for torch's own extensions.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MINIMUM_TORCH = (2, 10)  # the oldest whose stable ABI is used; the build then serves that torch and all later ones
# Compute capabilities that the CUDA kernels are compiled for: 8.0 serves all 8.x, 9.0 is the only 9.x, 10.0 serves all
# 10.x, and its PTX whatever comes later.
GPUS = "8.0;9.0a;10.0+PTX"
FLAGS = ["-O3", "-g0", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Icsrc/include"]
NVCC_FLAGS = ["-O3", "-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wno-psabi", "-Icsrc/include", "--threads=0"]

wanted = os.environ.get("LEACE_FAST_EXT", "")
if wanted not in ("", "0", "1"):
    raise SystemExit(f"LEACE_FAST_EXT is {wanted!r}, expected 1 (must build), 0 (leave out) or unset")


def give_up(what: str, reason: str) -> None:
    """Warn of what the install does without, or stop where it was asked for."""
    if wanted == "1":
        raise SystemExit(f"LEACE_FAST_EXT=1, and {what} cannot be built: {reason}")
    warnings.warn(f"leace-fast is installed without {what}: {reason}", stacklevel=2)


def sources(*patterns: str) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in Path("csrc").glob(pattern))


def interface() -> str:
    """Return the number by which the package knows libraries that were built for it."""
    (number,) = re.findall(r"^INTERFACE = (\d+)", Path("leace_fast/_ops/extension.py").read_text("utf-8"), re.MULTILINE)
    return number


@functools.cache
def python_module() -> Extension:
    """Return `leace_fast._C`: the kernels for NumPy and DLPack, and what is known of this build."""
    import pybind11

    return Extension(
        "leace_fast._C",
        sources("cpu/*/*.cpp", "python/*.cpp"),
        include_dirs=[pybind11.get_include(), sysconfig.get_paths()["include"]],
        define_macros=[("LEACE_FAST_FLAGS", f'"{shlex.join(FLAGS)}"'), ("LEACE_FAST_INTERFACE", interface())],
    )


@functools.cache
def torch_operators() -> Extension | None:
    """Return `leace_fast/_C_torch.so`, or None where torch is absent or too old."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        advice = "Install torch first, then pip install --no-build-isolation"
        give_up("its torch operators", f"torch cannot be imported ({error}). {advice}")
        return None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MINIMUM_TORCH:
        expected = ".".join(map(str, MINIMUM_TORCH))
        give_up("its torch operators", f"torch is {torch.__version__}, expected {expected} or newer")
        return None
    cuda = bool(torch.version.cuda) and nvcc() is not None
    if torch.version.cuda and not cuda:
        warnings.warn(
            f"leace-fast is installed without its CUDA operators: torch {torch.__version__} has CUDA, and no nvcc was "
            "found. Put it on the PATH, or set CUDA_HOME",
            stacklevel=2,
        )
    files = set(sources("cpu/*/*.cpp", "torch/*.cpp", "cuda/*.cu"))
    files -= set() if cuda else set(sources("torch/*_cuda.cpp", "cuda/*.cu"))
    return Extension(
        "leace_fast._C_torch",
        sorted(files),
        include_dirs=cpp_extension.include_paths(),
        library_dirs=cpp_extension.library_paths(),
        libraries=["c10", "torch", "torch_cpu", *(["torch_cuda"] if cuda else [])],
        define_macros=[
            ("TORCH_TARGET_VERSION", f"0x{MINIMUM_TORCH[0]:02x}{MINIMUM_TORCH[1]:02x}{0:012x}"),
            ("LEACE_FAST_INTERFACE", interface()),
        ],
        extra_compile_args=gpu_flags() if cuda else [],  # of nvcc
    )


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")


def gpu_flags() -> list[str]:
    """Return nvcc's options for the GPUs. Those below 8.0 are left out: they have no instruction for bfloat16."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or GPUS
    known = [re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", gpu) for gpu in re.split(r"[;\s]+", listed)]
    served = [gpu for gpu in known if gpu and int(gpu[1]) >= 8]
    if None in known or not served:
        expected = "compute capabilities, 8.0 or above among them, like 8.0;9.0a;10.0+PTX"
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST is {listed!r}, expected {expected}")
    numbers = [(gpu[1] + gpu[2] + gpu[3], gpu[4]) for gpu in served]
    return [f"-gencode=arch=compute_{n},code=[sm_{n}{f',compute_{n}' if ptx else ''}]" for n, ptx in numbers]


class NinjaBuild(build_ext):
    """Compile every source once, all at the same time; a library that fails is left out unless it was asked for."""

    def get_ext_filename(self, fullname: str) -> str:
        name = Path(super().get_ext_filename(fullname))
        # The operators do not depend on Python: one file serves all versions.
        return str(name.with_name("_C_torch.so") if name.name.startswith("_C_torch.") else name)

    def build_extensions(self) -> None:
        built = []
        for extension in self.extensions:
            try:
                self.ninja(extension)
                built.append(extension)
            except (OSError, subprocess.CalledProcessError, ImportError) as error:  # no compiler, no headers, ...
                output = getattr(error, "output", None) or ""
                give_up(f"its compiled kernels ({extension.name})", f"{error}\n{output}")
        self.extensions = built

    def ninja(self, extension: Extension) -> None:
        import ninja
        from ninja import ninja_syntax

        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        plan = folder / f"{extension.name}.ninja"
        target = Path(self.get_ext_fullpath(extension.name)).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        options = [f"-I{path}" for path in extension.include_dirs]
        options += [f"-D{name}={value}" for name, value in extension.define_macros]
        links = [f"-L{path}" for path in extension.library_dirs] + [f"-l{name}" for name in extension.libraries]
        linker = shlex.split(sysconfig.get_config_var("LDCXXSHARED") or "c++ -shared")[1:]
        compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
        cuda = any(source.endswith(".cu") for source in extension.sources)
        host = [f"-ccbin={os.environ['CXX']}"] if "CXX" in os.environ else []
        nvcc_flags = [*NVCC_FLAGS, *host, *extension.extra_compile_args]
        cxx_flags = [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        with open(plan, "w", encoding="utf-8") as file:
            writer: Any = ninja_syntax.Writer(file, width=120)  # type: ignore[arg-type]
            writer.variable("builddir", str(folder))
            compile_one = "$options -MMD -MF $out.d -c $in -o $out"
            writer.rule("cxx", f"{compiler} {shlex.join(cxx_flags)} {compile_one}", depfile="$out.d", deps="gcc")
            writer.rule("cuda", f"{nvcc()} {shlex.join(nvcc_flags)} {compile_one}", depfile="$out.d", deps="gcc")
            link = f"{compiler} {shlex.join([*cxx_flags, *linker])}"
            if cuda:  # with CUDA's runtime inside, so that it need not be the release that torch brings
                link = f"{nvcc()} {shlex.join([*host, '-shared', '--cudart=static'])}"
            writer.rule("link", f"{link} $in -o $out {shlex.join(links)}")
            objects = []
            for source in extension.sources:
                objects.append(str(folder / source) + ".o")
                # What needs neither Python nor torch is compiled once, for both libraries.
                own = [] if source.startswith("csrc/cpu/") else options
                # nvcc knows where CUDA's headers are, also for what runs on the host.
                rule = "cuda" if source.endswith((".cu", "_cuda.cpp")) else "cxx"
                writer.build(objects[-1], rule, source, variables={"options": shlex.join(own)})
            writer.build(str(target), "link", objects)
        command = [str(Path(ninja.BIN_DIR, "ninja")), "-f", str(plan)]
        subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def libraries() -> list[Extension]:
    if wanted == "0":
        return []
    if sys.platform == "win32":
        give_up("its compiled kernels", "they are not written for Windows")
        return []
    try:
        module = python_module()
    except ImportError as error:
        give_up("its compiled kernels", f"{error}. pip install pybind11 ninja")
        return []
    operators = torch_operators()
    return [module, operators] if operators else [module]


setup(ext_modules=libraries(), cmdclass={"build_ext": NinjaBuild})
