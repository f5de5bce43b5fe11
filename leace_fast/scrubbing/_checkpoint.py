"""`Checkpoint`: what an interrupted scrub has fitted so far, in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .._files import write_bytes
from ..erasers import Eraser
from ..statistics import Moments
from ._reading import SiteMoments

INDEX = "checkpoint.json"
SAMPLED = 16  # values of each parameter that tell one model from another


class Checkpoint:
    """A folder with the erasers of a sequential scrub, or the statistics of a parallel one.

    Args:
        folder: made if it is not there; one that holds the checkpoint of the same call is gone on with.
        facts: what tells this call from others.

    Raises:
        ValueError: the folder holds the checkpoint of another call, and the difference is named; or it holds files of
            another kind.
    """

    def __init__(self, folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.facts = json.loads(json.dumps(facts))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / INDEX
        if path.exists():
            try:
                self.index = json.loads(path.read_bytes())
                found = self.index["facts"]
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error!r}): remove the folder to start anew") from error
            if other := [name for name in self.facts if found.get(name) != self.facts[name]]:
                raise ValueError(
                    f"{self.folder} holds the checkpoint of another call: it differs in {', '.join(other)}; remove "
                    "the folder, or name another"
                )
        elif any(self.folder.glob("*.safetensors")):
            raise ValueError(f"{self.folder} holds files that are no checkpoint: name another folder")
        else:
            self.index = {"facts": self.facts, "erasers": {}, "batch": -1}
            self._write()

    def eraser(self, site: str) -> Eraser | None:
        """The eraser of a site, if it was fitted."""
        if site not in self.index["erasers"]:
            return None
        path = self.folder / f"{quote(site, safe='')}.safetensors"
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.index["erasers"][site]:
            raise ValueError(f"{path} is damaged: remove the folder to start anew")
        return Eraser.load(path)

    def add(self, site: str, eraser: Eraser) -> None:
        """Keep the eraser of a site."""
        path = self.folder / f"{quote(site, safe='')}.safetensors"
        eraser.save(path)
        self.index["erasers"][site] = hashlib.sha256(path.read_bytes()).hexdigest()
        self._write()

    def moments(
        self, concepts: Sequence[str], others: bool, device_at: Callable[[str], torch.device]
    ) -> tuple[int, dict[str, SiteMoments]]:
        """The number of the last batch that was taken in, -1 if none was, and the statistics by site.

        Args:
            concepts: their names.
            others: whether rows without labels were kept too.
            device_at: where those of a site go on.
        """
        batch = self.index["batch"]
        if batch < 0:
            return batch, {}
        folder, found = self.folder / f"batch-{batch}", {}
        for number, site in enumerate(self.facts["sites"]):
            device = device_at(site)
            by_name = {name: Moments.load(_file(folder, number, name), device=device) for name in concepts}
            found[site] = SiteMoments(by_name, Moments.load(_file(folder, number), device=device) if others else None)
        return batch, found

    def add_moments(self, batch: int, moments: Mapping[str, SiteMoments]) -> None:
        """Keep the statistics as they are after a batch."""
        folder, before = self.folder / f"batch-{batch}", self.index["batch"]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number, site in enumerate(self.facts["sites"]):
            for name, each in moments[site].concepts.items():
                each.save(_file(folder, number, name))
            if (others := moments[site].others) is not None:
                others.save(_file(folder, number))
        self.index["batch"] = batch
        self._write()  # from here on the new folder counts
        shutil.rmtree(self.folder / f"batch-{before}", ignore_errors=True)

    def _write(self) -> None:
        write_bytes(self.folder / INDEX, json.dumps(self.index, indent=1).encode())


def _file(folder: Path, site: int, concept: str | None = None) -> Path:
    """The file of a site's statistics of a concept, or of the rows without labels."""
    return folder / (
        f"{site}.others.safetensors" if concept is None else f"{site}-{quote(concept, safe='')}.safetensors"
    )


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's parameters: their names, shapes and first values."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.is_meta:
            digest.update(_bytes(parameter.reshape(-1)[:SAMPLED]))
    return digest.hexdigest()


class Digest:
    """A digest of batches, taken in one after another."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take in a batch."""
        leaves, spec = pytree.tree_flatten(dict(batch))
        self._sha.update(repr(spec).encode())
        for leaf in leaves:
            self._sha.update(_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode())

    def __str__(self) -> str:
        return self._sha.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
