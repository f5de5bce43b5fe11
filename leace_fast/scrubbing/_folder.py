"""A scrubber as a folder, on disk or on the Hugging Face hub: one file a site, and an index with their checksums."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from .._files import FORMAT_VERSION, check_version, read_bytes, unreadable
from .._schema import (
    DIGEST,
    NOTHING,
    OBJECT,
    TEXT,
    check_fields,
    dump_json,
    integer,
    list_of,
    parse_json,
    row_of,
    short,
)
from ..erasers import Eraser
from ..models import Identity, on_hub
from ._seen import Seen
from ._together import digest_of, digest_of_index, read_member, write_together

INDEX = "scrubber.json"
SEEN = "seen.bin"  # no site's file is called so
FIELDS = {
    "model_id": TEXT,
    "revision": TEXT,
    "config": OBJECT | NOTHING,
    "sites": list_of(row_of(TEXT, DIGEST)),
    "seen": DIGEST,
}
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
    """Write one safetensors file a site, `seen.bin`, and `scrubber.json`, which names their checksums.

    Whenever that stops, the folder holds the scrubber that was there or this one. Without `seen`, what the erasers were
    fitted on is not known, and there is no such file.
    """
    folder = Path(folder)
    files = {file_name(site): eraser._to_bytes() for site, eraser in erasers.items()}
    index: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model_id": identity.model_id,
        "revision": identity.revision,
        "config": identity.config,
        "sites": [(site, digest_of(files[file_name(site)])) for site in erasers],
    }
    if seen is not None:
        files[SEEN] = seen.to_bytes()
        index["seen"] = digest_of(files[SEEN])
    check_fields(index, FIELDS, optional=["seen"])
    text = dump_json({**index, "sha256": digest_of_index(index)}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    write_together(folder, files, (INDEX, text.encode()), _written(folder))


def read_folder(folder: Path, device: torch.device | str) -> tuple[dict[str, Eraser], Identity, Seen | None]:
    """Read what `write_folder` wrote, to the bit.

    Raises:
        FileNotFoundError: the folder holds no scrubber, or lacks a file that belongs to it.
        ValueError: a file is damaged, belongs to another save, or has a later format.
    """
    index = _read_index(folder)
    erasers = {}
    for site, digest in index["sites"]:
        data = read_member(folder, file_name(site), digest, INDEX)
        erasers[site] = Eraser._read(data, folder / file_name(site), device)
    seen = None
    if digest := index.get("seen"):
        try:
            seen = Seen.from_bytes(read_member(folder, SEEN, digest, INDEX))
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


def _written(folder: Path) -> dict[str, str]:
    """The files of the scrubber that a folder holds, and their digests; none where it holds none that can be read."""
    try:
        index = _read_index(folder)
    except (FileNotFoundError, ValueError):
        return {}
    files = {file_name(site): digest for site, digest in index["sites"]}
    return files | ({SEEN: index["seen"]} if "seen" in index else {})


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = parse_json(read_bytes(path))
        check_fields(index, {"format_version": integer(1), "sha256": DIGEST})
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{folder} holds no {INDEX}: pass a folder that save_pretrained wrote") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): write it again, or fetch it again") from error
    check_version(path, index["format_version"])
    if index.pop("sha256") != digest_of_index(index):
        raise ValueError(f"{path} is damaged (its checksum does not fit): write it again, or fetch it again")
    try:
        check_fields(index, FIELDS, optional=["config", "seen"])
        names = [file_name(site) for site, _ in index["sites"]]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"sites are {short(index['sites'])}, expected at least one, and each once")
    except ValueError as error:
        raise unreadable(path, "scrubber", error) from error
    return index


def _card(repo_id: str, count: int, model_id: str) -> ModelCard:
    base = model_id if on_hub(model_id) else None
    data = ModelCardData(library_name="leace-fast", tags=TAGS, base_model=base)
    text = CARD.format(of=f" of {base}" if base else "", count=count, repo_id=repo_id)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
