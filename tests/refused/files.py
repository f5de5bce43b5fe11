"""Files, folders and checkpoints that are refused: they were crafted, cut off, or belong to something else."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import leace_fast as lf
from leace_fast._files import load_tensors, save_tensors
from leace_fast.data._shards import Shards
from refused.refusal import Refusal

TITLE = "Files and checkpoints"


def _moments(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Any:
    """Moments from a file whose checksum is right, and whose tensors or header were changed."""
    path = folder / "moments"
    lf.Moments(3, 2).update(torch.eye(3), torch.tensor([0, 1, 1])).save(path)
    tensors, header = load_tensors(path, "moments")
    change(tensors, header)
    save_tensors(path, "moments", tensors, {n: v for n, v in header.items() if n not in ("format_version", "kind")})
    return lf.Moments.load(path)


def _eraser() -> lf.Eraser:
    return lf.Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1])


def _scrubber(folder: Path, change: Callable[[dict[str, Any]], None]) -> Any:
    """A scrubber whose index was changed."""
    lf.Scrubber({"a": _eraser(), "b": _eraser()}).save_pretrained(folder)
    index = json.loads((folder / "scrubber.json").read_text())
    change(index)
    (folder / "scrubber.json").write_text(json.dumps(index))
    return lf.Scrubber.from_pretrained(folder)


def _scrub(folder: Path, model: nn.Module | None = None, seed: int = 0, **options: Any) -> Any:
    model = _model() if model is None else model
    torch.manual_seed(seed)
    batches = [{"input": torch.randn(40, 4), "concept_labels": torch.arange(40) % 2}]
    return lf.scrub(
        model, batches, ["0"], checkpoint=folder / "checkpoint", track=lambda items, stage: items, **options
    )


def _model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 40))


def _twice(folder: Path, change: Callable[[Any], Any] = lambda model: None, **options: Any) -> Any:
    """A scrub, and the same one once more after a change."""
    _scrub(folder)
    model = _model()
    with torch.no_grad():
        change(model)
    return _scrub(folder, model, **options)


def _holding(held: Any) -> Callable[[lf.Moments], lf.Eraser]:
    def method(moments: lf.Moments) -> lf.Eraser:
        return lf.leace(moments) if held else lf.leace(moments)

    return method


def _archive(folder: Path) -> Any:
    """Shards in an archive that says it holds more than its bytes."""
    np.savez(folder / "0.npz", x=np.zeros((3, 4)), y=np.arange(3))
    with zipfile.ZipFile(folder / "0.npz") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(folder / "0.npz", "w") as file:
        for name, data in parts.items():
            file.writestr(name, data.replace(b"(3, 4), }", b"(3,99), }"))
    return Shards(folder)


REFUSALS = [
    Refusal(
        "a file in which one bit is not as it was written",
        "a checksum covers the whole file: write it again, or fetch it again",
        lambda folder: (
            _eraser().save(folder / "e"),
            (folder / "e").write_bytes((folder / "e").read_bytes()[:-1] + b"?"),
            lf.Eraser.load(folder / "e"),
        ),
        "is damaged or no file of leace-fast",
    ),
    Refusal(
        "moments whose tensors do not fit their header",
        "whoever changes a file can compute its checksum anew; kernels would write beyond the tensor",
        lambda folder: _moments(folder, lambda tensors, header: tensors.update(second=torch.zeros(2, 2).double())),
        "second has shape (2, 2), expected (3, 3)",
    ),
    Refusal(
        "moments whose header says another width",
        "no memory is taken for what a header says: the tensors are there or not",
        lambda folder: _moments(folder, lambda tensors, header: header.update(dim=10**6)),
        "shift has shape (3,), expected (1000000)",
    ),
    Refusal(
        "moments with sums that no rows add up to",
        "an eraser of such sums would erase nothing, and say that it did",
        lambda folder: _moments(folder, lambda tensors, header: tensors["sums"].fill_(torch.nan)),
        "sums holds NaN or Inf",
    ),
    Refusal(
        "a field of a header of another type",
        "`true` would be taken for a width of 1",
        lambda folder: _moments(folder, lambda tensors, header: header.update(dim=True)),
        "dim is True, expected an integer of at least 1",
    ),
    Refusal(
        "an index of a scrubber with a version that is no number",
        "it is neither above nor below the version that is known, so that no checksum would be compared",
        lambda folder: _scrubber(folder, lambda index: index.update(format_version=float("nan"))),
        "format_version is NaN",
    ),
    Refusal(
        "an index of a scrubber of which a site was taken out",
        "the model would run without that eraser",
        lambda folder: _scrubber(folder, lambda index: index["sites"].pop()),
        "its checksum does not fit",
    ),
    Refusal(
        "a report that holds NaN, on saving",
        "no file holds what reading it would refuse",
        lambda folder: lf.Eraser(
            torch.eye(3)[:, :1], torch.eye(3)[:1], report=lf.Report("mine", 3, 1, 10, change=float("nan"))
        ).save(folder / "e"),
        "report.change is NaN",
    ),
    Refusal(
        "an archive of shards whose header says more than it holds",
        "no memory is taken for it",
        _archive,
        "x has 96 bytes, its header says 2376",
    ),
    Refusal(
        "a checkpoint of a model of which one weight is another",
        "all bytes of all weights and buffers count: the erasers would be those of the other model",
        lambda folder: _twice(folder, lambda model: model[1].weight[-1, -1].add_(1)),
        "checkpoint of another call: it differs in model",
    ),
    Refusal(
        "a checkpoint of a model with another number in a module",
        "no weight differs, and the activations do",
        lambda folder: _twice(folder, lambda model: setattr(model[0], "eps", 0.1)),
        "it differs in model",
    ),
    Refusal(
        "a checkpoint of other data",
        "every batch counts",
        lambda folder: _twice(folder, seed=1),
        "it differs in data",
    ),
    Refusal(
        "a checkpoint of a method with other options",
        "functions count by their code, defaults, closures and globals",
        lambda folder: _twice(folder, method="orth"),
        "it differs in method",
    ),
    Refusal(
        "a method that holds what cannot be told apart, such as a lock, with `checkpoint=`",
        "a later call could not be known to be the same: give the function an attribute `checkpoint_name`",
        lambda folder: _scrub(folder, method=_holding(threading.Lock())),
        "method.checkpoint_name =",
    ),
]
