"""A scrubber as a folder, on disk or on the Hugging Face hub: one file a site, and an index with their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from .._files import write_bytes
from ..erasers import Eraser
from ..models import Identity, on_hub
from ._seen import Seen

FORMAT_VERSION = 1
INDEX = "scrubber.json"
SEEN = "seen.bin"  # no site's file is called so
TAGS = ["concept-erasure"]
CARD = """# Erasers{of}

{count} sites, scrubbed of a concept.

```python
from leace_fast import Scrubber

scrubber = Scrubber.from_pretrained("{repo_id}")
with scrubber.attached(model):
    ...
```
"""


def write_folder(
    folder: str | os.PathLike[str], erasers: Mapping[str, Eraser], identity: Identity, seen: Seen | None
) -> None:
    """Write one safetensors file a site, `seen.bin`, and `scrubber.json`, which comes last and names their checksums.

    Without `seen`, what the erasers were fitted on is not known, and there is no such file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sites = {}
    for site, eraser in erasers.items():
        path = folder / file_name(site)
        eraser.save(path)
        sites[site] = hashlib.sha256(path.read_bytes()).hexdigest()
    index = {
        "format_version": FORMAT_VERSION,
        "model_id": identity.model_id,
        "revision": identity.revision,
        "config": identity.config,
        "sites": list(sites.items()),
    }
    if seen is not None:
        data = seen.to_bytes()
        write_bytes(folder / SEEN, data)
        index["seen"] = hashlib.sha256(data).hexdigest()
    write_bytes(folder / INDEX, json.dumps({**index, "sha256": _digest(index)}, indent=1).encode())


def read_folder(folder: Path, device: torch.device | str) -> tuple[dict[str, Eraser], Identity, Seen | None]:
    """Read what `write_folder` wrote, to the bit.

    Raises:
        FileNotFoundError: the folder holds no scrubber, or lacks a file that belongs to it.
        ValueError: a file is damaged, belongs to another save, or has a later format.
    """
    index = _read_index(folder)
    erasers = {}
    for site, digest in index["sites"]:
        _checked(folder / file_name(site), digest)
        erasers[site] = Eraser.load(folder / file_name(site), device=device)
    seen = None
    if digest := index.get("seen"):
        try:
            seen = Seen.from_bytes(_checked(folder / SEEN, digest))
        except ValueError as error:
            raise ValueError(f"{folder / SEEN} cannot be read ({error}): write the folder again") from error
    return erasers, Identity(index["model_id"], index["revision"], index.get("config") or {}), seen


def find_folder(source: str | os.PathLike[str], options: Mapping[str, Any]) -> Path:
    """The folder of a scrubber: `source` itself, or what the hub has under that name, fetched without other files.

    Args:
        source: a folder, or `owner/name` of the hub.
        options: as `huggingface_hub.snapshot_download` takes them.

    Raises:
        FileNotFoundError: it is neither.
    """
    if not isinstance(source, str) or Path(source).is_dir() or not on_hub(source):
        return Path(source)
    try:
        index = _read_index(Path(hf_hub_download(source, INDEX, **options)).parent)
        # the names are plain: `file_name` leaves nothing that a pattern would mean
        names = [file_name(site) for site, _ in index["sites"]] + ([SEEN] if index.get("seen") else [])
        return Path(snapshot_download(source, allow_patterns=[INDEX, *names], **options))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"{source} is no folder here, and the hub gives no {INDEX} for it: {error}") from error


def push_folder(
    repo_id: str,
    erasers: Mapping[str, Eraser],
    identity: Identity,
    seen: Seen | None,
    token: str | bool | None,
    private: bool | None,
    **commit: Any,
) -> str:
    """Write the folder, and a card, to a repository of the hub, made if need be; returns the URL of the commit.

    Args:
        repo_id: `owner/name`.
        erasers, identity, seen: what is written.
        token: of the hub; None for the one that is logged in.
        private: whether a new repository is private; None for the owner's default.
        commit: as `HfApi.upload_folder` takes it.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, erasers, identity, seen)
        _card(repo_id, len(erasers), identity.model_id).save(Path(folder) / "README.md")
        return api.upload_folder(repo_id=repo_id, folder_path=folder, **commit)


def file_name(site: str) -> str:
    """The name of a site's file."""
    return quote(site, safe="") + ".safetensors"


def _checked(path: Path, digest: str) -> bytes:
    """The bytes of a file of the folder, if they are those of this save."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, which {INDEX} names: fetch the whole folder again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path} is damaged or of another save than {INDEX}: write the folder again")
    return data


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
        digest = index.pop("sha256")
        version = index["format_version"]
        damaged = version <= FORMAT_VERSION and digest != _digest(index)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{folder} holds no {INDEX}: pass a folder that save_pretrained wrote") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): write it again, or fetch it again") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this release reads up to {FORMAT_VERSION}: update leace-fast"
        )
    if damaged:
        raise ValueError(f"{path} is damaged (its checksum does not fit): write it again, or fetch it again")
    return index


def _digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _card(repo_id: str, count: int, model_id: str) -> ModelCard:
    base = model_id if on_hub(model_id) else None
    data = ModelCardData(library_name="leace-fast", tags=TAGS, base_model=base)
    text = CARD.format(of=f" of {base}" if base else "", count=count, repo_id=repo_id)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
