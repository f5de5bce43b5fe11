"""`make bench-gpu`: correct first, then timed beside peers, with floors; JSON and a roofline in bench/results/."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import correctness
import torch

HERE = Path(__file__).parent
LIMIT = 460  # seconds; what does not fit is named in the result


def machine(device: torch.device) -> dict[str, Any]:
    """Return device and versions; nothing that names a host or a person."""
    packages = ("leace-fast", "torch", "triton", "concept-erasure")
    known = {name.metadata["Name"] for name in importlib.metadata.distributions()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "versions": {name: importlib.metadata.version(name) for name in packages if name in known},
    }


def sanitize(tool: str) -> str:
    """Run the small program under one tool of compute-sanitizer."""
    if shutil.which("compute-sanitizer") is None:
        return "not installed"
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, str(HERE / "sanitized.py")]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    except subprocess.TimeoutExpired:
        return "not finished in 100 s"
    assert result.returncode != 9, f"{tool} found errors:\n{result.stdout[-4000:]}"
    return "clean" if result.returncode == 0 else f"did not run: {(result.stdout + result.stderr)[-300:]}"


def check(device: torch.device) -> dict[str, Any]:
    """Return what was held to float64, to the same bits, to no waiting, and to clean memory."""
    shapes = [(1, 64), (257, 64), (5000, 100), (40_000, 768), (20_000, 1000), (20_000, 4096)]
    return {
        "sums": correctness.check_sums(device, shapes, (0.0, 10.0, 100.0)),
        "repeats": correctness.check_repeats(device, 1000, 3000, 256),
        "waiting": correctness.check_no_waiting(device, 64, 4096, 1024),
        "memcheck": sanitize("memcheck"),
        "racecheck": sanitize("racecheck"),
    }


def main() -> int:
    """Run everything, in the order of what matters most, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "gpu.json")
    parser.add_argument("--drift-rows", type=float, default=1e9)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench-gpu: no CUDA device here, nothing was measured", file=sys.stderr)
        return 2
    import fit
    import overlap
    import plot
    import timing

    if importlib.util.find_spec("concept_erasure") is None:
        print("concept-erasure is not installed: its fitter is left out (pip install --no-deps concept-erasure)")
    begin = time.monotonic()
    device = torch.device("cuda", torch.cuda.current_device())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine(device), "rows": [], "left_out": []}

    def write() -> None:
        result["seconds"] = time.monotonic() - begin
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")

    result["correctness"] = check(device)
    result["rates"] = timing.ceilings(device)
    write()
    parts = [("fit", fit.rows(device, result["rates"]))]
    if importlib.util.find_spec("apply") is not None:
        parts.append(("apply", importlib.import_module("apply").rows(device, result["rates"])))
    for name, rows in parts:
        for row in rows:
            result["rows"].append({"part": name, **row})
            if time.monotonic() - begin > LIMIT:
                result["left_out"].append(f"the rest of {name}")
                break
        write()
    trace = arguments.out.with_name("gpu_overlap_trace.json")
    later: list[tuple[str, Any]] = [("overlap", lambda: overlap.measure(device, trace))]
    for ratio, rows in ((10.0, arguments.drift_rows), (100.0, 1e8), (300.0, 1e8)):
        later.append((f"drift {ratio:g}", lambda r=ratio, n=rows: correctness.check_drift(device, int(n), 256, r)))
    for name, measure in later:
        if time.monotonic() - begin > LIMIT:
            result["left_out"].append(name)
        else:
            result[name] = measure()
        write()
    print(plot.table(result["rows"]))
    plot.draw(result, arguments.out.with_suffix(".png"))
    print(f"{result['seconds']:.0f} s; left out: {', '.join(result['left_out']) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
