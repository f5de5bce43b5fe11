"""`Checkpoint`: what an interrupted scrub has fitted so far, in a folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from .._files import FORMAT_VERSION, check_version, left_of, read_bytes, remove_folder, write_bytes
from .._schema import DIGEST, OBJECT, TEXT, check_fields, integer, list_of, object_of, parse_json
from ..erasers import Eraser
from ..statistics import Moments
from ._folder import file_name
from ._reading import SiteMoments
from ._together import digest_of, digest_of_index
from ._told_apart import told_apart

INDEX = "checkpoint.json"
FIELDS = {
    "facts": OBJECT,
    "erasers": object_of(DIGEST),
    "batch": integer(-1),
    "passed": TEXT,
    "moments": object_of(DIGEST),
}
FACTS = {"sites": list_of(TEXT)}
START_ANEW = "remove the folder to start anew"


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
            self.index = _read_index(path)
            found = self.index["facts"]
            if other := [name for name in self.facts if found.get(name) != self.facts[name]]:
                raise self.of_another_call(", ".join(other))
            self._clear()
        elif any(self.folder.glob("*.safetensors")):
            raise ValueError(f"{self.folder} holds files that are no checkpoint: name another folder")
        else:
            self.index = {"facts": self.facts, "erasers": {}, "batch": -1, "passed": "", "moments": {}}
            self._write(self.index)

    def of_another_call(self, different: str) -> ValueError:
        """What is raised where the folder holds the checkpoint of another call."""
        return ValueError(
            f"{self.folder} holds the checkpoint of another call: it differs in {different}; remove the "
            "folder, or name another"
        )

    def eraser(self, site: str) -> Eraser | None:
        """The eraser of a site, if it was fitted."""
        if site not in self.index["erasers"]:
            return None
        path = self.folder / file_name(site)
        return Eraser._read(self._checked(path, self.index["erasers"][site]), path, "cpu")

    def add(self, site: str, eraser: Eraser) -> None:
        """Keep the eraser of a site."""
        data = eraser._to_bytes()
        write_bytes(self.folder / file_name(site), data)
        self._write({**self.index, "erasers": {**self.index["erasers"], site: digest_of(data)}})

    def moments(
        self, concepts: Mapping[str, Mapping[str, Any]], others: bool, device_at: Callable[[str], torch.device]
    ) -> tuple[int, dict[str, SiteMoments]]:
        """The number of the last batch that was taken in, -1 if none was, and the statistics by site.

        Args:
            concepts: their kinds by name, as arguments of `Moments`.
            others: whether rows without labels were kept too.
            device_at: where those of a site go on.
        """
        batch = self.index["batch"]
        if batch < 0:
            return batch, {}
        folder, found = self.folder / f"batch-{batch}", {}

        def load(path: Path, device: torch.device, **kind: Any) -> Moments:
            self._checked(path, self.index["moments"].get(path.name, ""))
            moments = Moments.load(path, device=device)
            if any(getattr(moments, name) != size for name, size in kind.items()):
                raise ValueError(f"{path} holds {moments}, expected {kind}: {START_ANEW}")
            return moments

        for number, site in enumerate(self.facts["sites"]):
            device = device_at(site)
            by_name = {name: load(_file(folder, number, name), device, **kind) for name, kind in concepts.items()}
            found[site] = SiteMoments(by_name, load(_file(folder, number), device) if others else None)
        return batch, found

    def add_moments(self, batch: int, moments: Mapping[str, SiteMoments], passed: str) -> None:
        """Keep the statistics as they are after a batch, and the digest of the batches so far."""
        folder, before, digests = self.folder / f"batch-{batch}", self.index["batch"], {}
        remove_folder(folder)
        folder.mkdir()
        for number, site in enumerate(self.facts["sites"]):
            named = [(_file(folder, number, name), each) for name, each in moments[site].concepts.items()]
            if (others := moments[site].others) is not None:
                named.append((_file(folder, number), others))
            for path, each in named:
                each.save(path)
                digests[path.name] = digest_of(read_bytes(path))
        # from here on the new folder counts
        self._write({**self.index, "batch": batch, "passed": passed, "moments": digests})
        if before >= 0:
            remove_folder(self.folder / f"batch-{before}")

    def _checked(self, path: Path, digest: str) -> bytes:
        """The bytes of a file, if they are those that were written."""
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing, which {INDEX} names: {START_ANEW}") from None
        if digest_of(data) != digest:
            raise ValueError(f"{path} is damaged: {START_ANEW}")
        return data

    def _clear(self) -> None:
        """Remove what calls that were killed have left: folders of statistics that do not count, unfinished files."""
        names = {INDEX, *(file_name(site) for site in self.facts["sites"])}
        for path in self.folder.iterdir():
            if re.fullmatch(r"batch-\d+", path.name) and path.name != f"batch-{self.index['batch']}":
                remove_folder(path)
            elif left_of(path.name) in names:
                path.unlink(missing_ok=True)

    def _write(self, index: dict[str, Any]) -> None:
        text = json.dumps({"format_version": FORMAT_VERSION, **index, "sha256": digest_of_index(index)}, indent=1)
        write_bytes(self.folder / INDEX, text.encode())
        self.index = index


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = parse_json(read_bytes(path))
        check_fields(index, {"format_version": integer(1), "sha256": DIGEST})
        check_version(path, index.pop("format_version"))
        if index.pop("sha256") != digest_of_index(index):
            raise ValueError("its checksum does not fit")
        check_fields(index, FIELDS)
        check_fields(index["facts"], FACTS)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no checkpoint of this release ({error}): {START_ANEW}") from error
    return index


def _file(folder: Path, site: int, concept: str | None = None) -> Path:
    """The file of a site's statistics of a concept, or of the rows without labels."""
    return folder / (
        f"{site}.others.safetensors" if concept is None else f"{site}-{quote(concept, safe='')}.safetensors"
    )


class Digest:
    """A digest of batches, taken in one after another."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, batch: Mapping[str, Any], name: str) -> None:
        """Take in a batch; `name` says which one.

        Raises:
            ValueError: it holds something that cannot be told from others.
        """
        kind = name.rpartition(" ")[0]
        self._text = digest_of(f"{self._text} {kind} {told_apart(dict(batch), name)}".encode())

    def __str__(self) -> str:
        return self._text
