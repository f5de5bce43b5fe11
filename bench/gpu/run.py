"""`make bench-gpu`: correct first, then timed beside peers, with floors; JSON and a roofline in bench/results/."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
LIMIT = 450  # seconds; what does not fit is named in the result
SHAPES = [(1, 64), (257, 64), (5000, 100), (40_000, 768), (20_000, 1000), (20_000, 4096)]


def machine(device: torch.device) -> dict[str, Any]:
    """Return device and versions; nothing that names a host or a person."""
    from leace_fast._ops.operators import EXTENSION

    packages = ("leace-fast", "torch", "triton", "concept-erasure")
    known = {name.metadata["Name"] for name in importlib.metadata.distributions()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "versions": {name: importlib.metadata.version(name) for name in packages if name in known},
        "compiled kernels of the erasure": sorted(EXTENSION.devices),
    }


class Sanitized:
    """The small program under one tool of compute-sanitizer, beside what runs here meanwhile."""

    def __init__(self, tool: str) -> None:
        self.process: Any = None
        if shutil.which("compute-sanitizer") is None:
            return
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        # Each tensor is an allocation of its own, so that no access lands in its neighbour unseen.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command += [sys.executable, str(HERE / "sanitized.py")]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def result(self, seconds: float) -> str:
        if self.process is None:
            return "not installed"
        try:
            said, _ = self.process.communicate(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # the program too, which would disturb what is timed
            return "not finished"
        code = self.process.returncode
        if code == 9:
            raise AssertionError(f"compute-sanitizer found errors:\n{said[-4000:]}")
        return "clean" if code == 0 and "every kernel ran" in said else f"did not run ({code}): {said[-1000:]}"


class Session:
    """What was measured so far, written down after each part; a part that fails does not stop the others."""

    def __init__(self, path: Path, limit: float) -> None:
        self.path, self.limit, self.begin = path, limit, time.monotonic()
        self.result: dict[str, Any] = {"rows": [], "seconds_by_part": {}, "left_out": [], "failures": {}}

    @property
    def left(self) -> float:
        return self.limit - (time.monotonic() - self.begin)

    def run(self, name: str, part: Callable[[], Any], keep: float = 0.0) -> None:
        """Run one part: its value is noted, or the rows that it yields are, while more than `keep` seconds are left."""
        if self.left < 0:
            self.result["left_out"].append(name)
            return
        begin = time.monotonic()
        try:
            found = part()
            if isinstance(found, Iterator):
                for row in found:
                    self.result["rows"].append({"part": name, **row})
                    if self.left < keep:
                        self.result["left_out"].append(f"the rest of {name}")
                        break
            else:
                self.result[name] = found
        except Exception:
            self.result["failures"][name] = traceback.format_exc()[-4000:]
            print(f"bench-gpu: {name} FAILED\n{self.result['failures'][name]}", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
        self.result["seconds_by_part"][name] = time.monotonic() - begin
        self.result["seconds"] = time.monotonic() - self.begin
        print(f"{self.result['seconds']:5.0f} s  {name}", flush=True)
        self.path.write_text(json.dumps(self.result, indent=1) + "\n")


def check(session: Session, device: torch.device) -> None:
    """Hold the kernels to float64, to the same bits, to no waiting, and to clean memory."""
    import correctness
    import sanitized

    # Compiles what compute-sanitizer will run, into the cache on the disk.
    session.run("small", lambda: sanitized.main(device))
    tools = {tool: Sanitized(tool) for tool in ("memcheck", "racecheck")}
    session.run("sums", lambda: correctness.check_sums(device, SHAPES, (0.0, 10.0, 100.0)))
    session.run("repeats", lambda: correctness.check_repeats(device, 1000, 3000, 256))
    session.run("waiting", lambda: correctness.check_no_waiting(device, 64, 4096, 1024))
    session.run("record", lambda: correctness.check_record(device, 8, 4096, 1024))
    for tool, started in tools.items():
        session.run(tool, lambda started=started: started.result(180 - session.limit + session.left))


def main() -> int:
    """Run everything, in the order of what matters most, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "gpu.json")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which parts are left out")
    parser.add_argument("--drift-rows", type=float, default=1e9)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench-gpu: no CUDA device here, nothing was measured", file=sys.stderr)
        return 2
    import apply
    import bias
    import correctness
    import fit
    import overlap
    import plot
    import timing

    if importlib.util.find_spec("concept_erasure") is None:
        print("concept-erasure is not installed: its fitter is left out (pip install --no-deps concept-erasure)")
    device = torch.device("cuda", torch.cuda.current_device())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    session = Session(arguments.out, arguments.limit)
    session.run("machine", lambda: machine(device))
    check(session, device)
    session.run("rates", lambda: timing.ceilings(device))
    rates = session.result.get("rates") or timing.KNOWN
    session.run("fit", lambda: fit.rows(device, rates), keep=150)
    session.run("bias", lambda: bias.measure(device, torch.cuda.get_device_capability(device)))
    for ratio, rows in ((10.0, arguments.drift_rows), (100.0, 1e8), (300.0, 1e8)):
        part = f"drift {ratio:g}"
        session.run(part, lambda ratio=ratio, rows=rows: correctness.check_drift(device, int(rows), 256, ratio))
    trace = arguments.out.with_name("gpu_overlap_trace.json.gz")
    session.run("overlap", lambda: overlap.measure(device, trace))
    session.run("apply", lambda: apply.rows(device, rates))
    result = session.result
    print(plot.table(result["rows"]))
    plot.draw(result | {"rates": rates}, arguments.out.with_suffix(".png"))
    print(f"{result['seconds']:.0f} s; left out: {', '.join(result['left_out']) or 'nothing'}")
    print(f"failed: {', '.join(result['failures']) or 'nothing'}")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
