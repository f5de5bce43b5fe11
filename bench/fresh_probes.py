"""How many tokens of each module the demo's erasers need: what fresh probes read, over two splits of fresh modules.

    python bench/fresh_probes.py bench/results/fresh_probes.json --page docs/demo.md --keep build/fresh_probes

Scrubs the demo's model on its 16 modules, and on these with a piece of each module of the installed standard library
that the model was trained on; measures loss and probes on the other modules; writes the table of the page. With --keep,
scrubbers that lie in that folder are not fitted again. About half an hour on two idle cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import warnings
from pathlib import Path
from typing import Any

import torch

from leace_fast import Scrubber, leace, scrub
from leace_fast.demo import ASSETS, CATEGORIES, Demo, Module, batches_of, load_demo, machine, scrub_demo
from leace_fast.demo._corpus import is_test, label_characters, split_library
from leace_fast.evaluation import Rows, SiteRows, bits_per_byte, erased, next_token_losses
from leace_fast.evaluation._logistic import _basis, _logistic_regression
from leace_fast.evaluation._probe import best_constant
from leace_fast.models import resolve_sites
from leace_fast.study._parts import HeldOut

# where the piece of a module lies, its tokens, contrasts
PIECES = (
    ("middle", 64, 0),
    ("middle", 128, 0),
    ("middle", 256, 0),
    ("middle", 512, 0),
    ("middle", 1024, 0),
    ("start", 256, 0),
    ("middle", 128, 5),
    ("middle", 256, 5),
    ("middle", 512, 5),
)
ROWS = 12_000  # half to train probes, half to test them
KINDS = ("other", "same")
BEGIN, END = "<!-- table: bench/fresh_probes.py -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--page", type=Path, help="the page whose table is written")
    parser.add_argument("--keep", type=Path, default=Path("build/fresh_probes"), help="folder of the scrubbers")
    parser.add_argument("--only-table", action="store_true", help="write the table of what was measured before")
    options = parser.parse_args()
    if not options.only_table:
        measure_all(options.out, options.keep)
    if options.page:
        page, found = options.page.read_text(encoding="utf-8"), json.loads(options.out.read_text())["conditions"]
        before, rest = page.split(BEGIN)
        page = f"{before}{BEGIN}\n{table(found)}\n{END}{rest.split(END, 1)[1]}"
        options.page.write_text(page, encoding="utf-8")


def table(conditions: dict[str, Any]) -> str:
    """Return a Markdown table: points over the best constant at the worst site, on both splits, and the loss."""
    lines = [
        "| fitted on | tokens | other modules | the same modules | bits per byte |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, found in conditions.items():
        cells = [" / ".join(f"{split[kind]:.1f}" for split in found["points"]) for kind in KINDS]
        lines.append(f"| {name} | {found['tokens']:,} | {' | '.join(cells)} | {found['bits_per_byte']:.3f} |")
    return "\n".join(lines)


def piece(module: Module, tokenizer: Any, tokens: int, where: str) -> Module:
    """Return the first tokens of a module, or as many from its middle on, there from the beginning of a line.

    With the start sign they are so many.
    """

    def ends(text: str) -> list[tuple[int, int]]:
        return tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)["offset_mapping"]

    offsets = ends(module.text)
    first = 0 if where == "start" else max((len(offsets) - tokens) // 2, 0)
    begin = module.text.rfind("\n", 0, offsets[first][0] + 1) + 1 if first else 0
    text = module.text[begin : offsets[min(first + tokens, len(offsets)) - 1][1]]
    end = begin + ends(text)[: tokens - 1][-1][1]
    return Module(module.name, module.text[begin:end], module.labels[begin:end])


def measure_all(out: Path, keep: Path) -> None:
    """Measure the demo's variants and each piece, and write the figures after each."""
    from transformers import AutoTokenizer

    demo, tokenizer = load_demo(), AutoTokenizer.from_pretrained(ASSETS / "model")
    found: dict[str, Any] = {}

    def measure(name: str, scrubber: Scrubber | None, tokens: int) -> None:
        bits, points, gains = measured(demo, scrubber)
        found[name] = {"tokens": tokens, "bits_per_byte": bits, "points": points}
        report = {"machine": machine(), "group_gain": gains, "conditions": found}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name:<40} {bits:.4f} bits per byte, points {points}", flush=True)

    measure("nothing erased", None, 0)
    few, many = (tokens_of(part) for part in (demo.fit, demo.many))
    kept = [keep / f"demo-{number}" for number in range(3)]
    if not all(map(Path.exists, kept)):
        for folder, scrubber in zip(kept, scrub_demo(demo).values(), strict=True):
            scrubber.save_pretrained(folder)
    names = (
        f"the demo's {len(demo.modules['fit'])} modules",
        "these and the demo's 437 pieces",
        "the same, 5 contrasts",
    )
    for name, folder, tokens in zip(names, kept, (few, many, many), strict=True):
        measure(name, Scrubber.from_pretrained(folder), tokens)
    library = [Module(m.name, m.text, label_characters(m.text)) for m in split_library()[0] if not is_test(m.name)]
    print(f"{len(library)} modules of Python {platform.python_version()}", flush=True)
    for where, length, contrasts in PIECES:
        modules = [*demo.modules["fit"], *(piece(module, tokenizer, length, where) for module in library)]
        batches = batches_of(modules, tokenizer)
        folder = keep / f"{where}-{length}-{contrasts}"
        if not folder.exists():
            inputs = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
            method = functools.partial(leace, contrasts=contrasts)
            scrub(demo.model, inputs, method=method, num_classes=len(CATEGORIES)).save_pretrained(folder)
        name = f"these and {length} tokens of each, {where}{f', {contrasts} contrasts' if contrasts else ''}"
        measure(name, Scrubber.from_pretrained(folder), tokens_of(batches))


def tokens_of(batches: list[dict[str, torch.Tensor]]) -> int:
    """The tokens of batches, without padding."""
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def measured(demo: Demo, scrubber: Scrubber | None) -> tuple[float, list[dict[str, float]], list[float]]:
    """Bits per byte of the fresh modules; points over the constant at the worst site, by split and kind of probe.

    Third, for each split, what telling a row's module alone gains where probes know the modules.
    """
    parts = [HeldOut(demo.fresh, same=True, swap=swap) for swap in (False, True)]
    example = {name: demo.fresh[0][name] for name in ("input_ids", "attention_mask")}
    sites = resolve_sites(demo.model, example, "norms")
    rows, nats = SiteRows(demo.model, sites, ROWS), 0.0
    with torch.no_grad(), erased(demo.model, scrubber):
        for number, batch in enumerate(demo.fresh):
            inputs = {name: batch[name] for name in example}
            with rows.gathering(batch, number, parts[0].cells[number]):
                logits = demo.model(**inputs, use_cache=False).logits
            nats += next_token_losses(logits, batch["labels"])[0].item()
    points: list[dict[str, float]] = []
    for part in parts:
        best: dict[str, float] = {kind: -100.0 for kind in KINDS}
        for site in sites:
            found = rows.of(site.name)
            trains = {"other": torch.isin(part.group[found.groups], part.train), "same": part.turn[found.groups] == 0}
            for kind, train in trains.items():
                best[kind] = max(best[kind], read(found, train))
        points.append(best)
    return bits_per_byte(nats, demo.text_bytes), points, [part.group_gain for part in parts]


def read(rows: Rows, train: torch.Tensor) -> float:
    """Points over the best constant of a logistic regression of some rows on the others.

    It is the regression of `linear_probe` without what holds that back where it has found nothing: the harder test.
    """
    mean, back = _basis(rows.x[train].float())
    z = ((rows.x.float() - mean) @ back).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few steps
        model = _logistic_regression(int(train.sum())).fit(z[train.numpy()], rows.y[train].numpy())
    right = float(model.score(z[~train.numpy()], rows.y[~train].numpy()))
    return 100 * (right - best_constant(rows.y[train], rows.y[~train]))


if __name__ == "__main__":
    main()
