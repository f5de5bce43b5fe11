"""`make experiments`: run all experiments, or those named, one after the other; write figures, pictures and the page.

python -m experiments.run [NAME ...] [--threads N] [--only-page]     from the folder bench/, or with it in PYTHONPATH
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import time

import torch

from . import page, pictures
from .claims import Result

NAMES = ("glove", "gender_layer", "gender_sites", "part_of_speech", "spurious")


def run(name: str) -> Result:
    """Run one experiment and keep what it found."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    result = importlib.import_module(f"experiments.{name}").run()
    result.seconds = round(time.perf_counter() - begin, 1)
    page.RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.as_json(), indent=1, ensure_ascii=False)
    (page.RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; without any, all")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument(
        "--only-page", action="store_true", help="run nothing: pictures and page of what was found before"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no experiment is named {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    torch.set_num_threads(options.threads)
    for name in () if options.only_page else options.names or NAMES:
        print(f"{name} ...", flush=True)
        result = run(name)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {result.seconds:.0f} s, peak memory so far {peak:.1f} GiB", flush=True)
        for claim in result.claims:
            verdict = "held" if claim.held else "FAILED"
            print(f"  {verdict:6} {claim.text}: {claim.figure}, expected {claim.bounds}", flush=True)
    pictures.draw_all(page.results(NAMES))
    page.write(page.results(NAMES))


if __name__ == "__main__":
    main()
