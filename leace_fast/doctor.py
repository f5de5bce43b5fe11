"""What this installation has to work with: the data behind `leace-fast doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ._ops import load_extension
from ._version import __version__

# (distribution, what is missing without it)
PACKAGES = (
    ("numpy", "required"),
    ("safetensors", "required"),
    ("huggingface_hub", "required"),
    ("transformers", "pip install 'leace-fast[hf]': language models"),
    ("pyarrow", "pip install 'leace-fast[hf]': parquet files"),
    ("scikit-learn", "pip install 'leace-fast[audit]': probes"),
    ("matplotlib", "pip install 'leace-fast[audit]': plots"),
    ("datasketches", "pip install 'leace-fast[quantiles]': median, swap and normalize_quantiles"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report: whether a thing is present, its version or value, and what else to know."""

    name: str
    present: bool
    value: str
    note: str = ""


def examine() -> list[Finding]:
    """Return what is installed and usable here, and why what is absent is absent. Imports nothing heavy.

    >>> [finding.name for finding in examine()][:3]
    ['leace-fast', 'Python', 'CPU']
    """
    return [
        Finding("leace-fast", True, __version__, os.path.dirname(__file__)),
        Finding("Python", True, platform.python_version(), platform.platform()),
        _cpu(),
        Finding("torch", True, torch.__version__),
        _cuda(),
        _triton(),
        _extension(),
        *(_package(name, note) for name, note in PACKAGES),
    ]


def as_json(findings: list[Finding]) -> dict[str, dict[str, Any]]:
    """Return the findings by name, ready for `json.dumps`."""
    return {finding.name: {k: v for k, v in asdict(finding).items() if k != "name"} for finding in findings}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, note: str) -> Finding:
    version = _version(name)
    return Finding(name, version is not None, version or "absent", "" if version else note)


def _cpu() -> Finding:
    capability = torch.backends.cpu.get_cpu_capability()
    features = "".join(f", {name}: {'yes' if present else 'no'}" for name, present in load_extension().features.items())
    note = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}{features}"
    return Finding("CPU", True, capability, note)


def _cuda() -> Finding:
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        note = ", ".join(f"{device.name} (compute capability {device.major}.{device.minor})" for device in devices)
        return Finding("CUDA", True, str(torch.version.cuda), note)
    if torch.version.cuda is None:
        return Finding("CUDA", False, "absent", "this torch is built without CUDA")
    return Finding("CUDA", False, torch.version.cuda, "torch is built with CUDA, and sees no device")


def _triton() -> Finding:
    version = _version("triton")
    if version is None:
        return Finding(
            "Triton", False, "absent", "comes with torch for CUDA; needed only for the GPU kernels of the fit"
        )
    return Finding("Triton", True, version)


def _extension() -> Finding:
    extension = load_extension()
    if not extension.present:
        return Finding("extension", False, "absent", f"{extension.reason}. Plain torch is used: the same results")
    build = extension.build
    kernels = " and ".join(device.upper() for device in sorted(extension.devices))
    note = f"kernels for {kernels}; {build['compiler']}, {build['flags']}, built against torch {build['torch']}"
    return Finding("extension", True, build["instruction_set"], note)
