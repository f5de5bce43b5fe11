"""`inspect_file`: what a file or folder of erasers, moments, adapters or GGUF says of itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .._files import KEY as HEADER
from .._schema import DIGEST, OBJECT, TEXT, check_fields, list_of, parse_json
from ..erasers import ConditionalEraser, Eraser, QuantileNormalizer, TargetEraser, digest_of_eraser, digest_of_erasers
from ..folding import CONFIG, KEY
from ..scrubbing import Scrubber
from ..statistics import Moments
from ._gguf import load_gguf
from ._gguf_lora import read_adapter

MAGIC = b"GGUF"
ERASERS: dict[Any, Any] = {
    "eraser": Eraser,
    "conditional_eraser": ConditionalEraser,
    "target_eraser": TargetEraser,
    "quantile_normalizer": QuantileNormalizer,
}
NOT_TOLD = "of which nothing is told"


def inspect_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a file or a folder says of itself, as JSON.

    Args:
        path: of an eraser or moments, of the folder of a scrubber or of an adapter, or of a GGUF file.

    Returns:
        `kind`, and what there is: for erasers their digest, method, rank and width; for adapters and GGUF files the
        record of what was done: the sites, the layers, the operation, the digests of erasers and of the base model.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: it is damaged, or none of these.
        ImportError: it is a GGUF file, and the package gguf is missing.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1]).save(f"{folder}/eraser.safetensors")
    ...     found = inspect_file(f"{folder}/eraser.safetensors")
    >>> found["kind"], found["rank"], len(found["digest"])
    ('eraser', 1, 64)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}")
    if path.is_dir():
        return _adapter(path) if (path / CONFIG).exists() else _scrubber(path)
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    return _gguf(path) if start == MAGIC else _safetensors(path)


def _scrubber(folder: Path) -> dict[str, Any]:
    try:
        scrubber = Scrubber.from_pretrained(folder)
    except FileNotFoundError as error:
        known = f"a scrubber's folder, or an adapter's with {CONFIG}"
        raise ValueError(f"{folder} holds nothing that is known ({error}), expected {known}") from error
    sites = {site: _facts(eraser) for site, eraser in scrubber.items()}
    return {
        "kind": "scrubber",
        "base_model": {"name": scrubber.model_id, "revision": scrubber.revision},
        "erasers": digest_of_erasers({site: facts["digest"] for site, facts in sites.items()}),
        "sites": sites,
    }


def _facts(eraser: Any) -> dict[str, Any]:
    facts = {"digest": digest_of_eraser(eraser), "method": eraser.method}
    for name in ("site", "rank", "dim"):
        if hasattr(eraser, name):
            facts[name] = getattr(eraser, name)
    return facts


def _adapter(folder: Path) -> dict[str, Any]:
    settings, tensors, record = read_adapter(folder)
    found = {"base_model": {"name": settings.get("base_model_name_or_path")}, "rank": settings.get("r")}
    return {"kind": "LoRA adapter", **found, "tensors": len(tensors), **_told(record)}


def _gguf(path: Path) -> dict[str, Any]:
    gguf = load_gguf()
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: reader.fields[name].contents() for name in reader.fields if name.startswith(("general.", KEY))}
    except Exception as error:  # whatever a broken file raises in there
        raise ValueError(f"{path} is a damaged GGUF file ({error}): write it again, or fetch it again") from error
    kind = "GGUF adapter" if fields.get("general.type") == "adapter" else "GGUF model"
    facts = {"architecture": fields.get("general.architecture"), "tensors": len(reader.tensors)}
    return {"kind": kind, **facts, **_told(fields.get(KEY))}


def _told(record: Any) -> dict[str, Any]:
    """What a record says; `record` says so where there is none, or none that can be read."""
    if record is None:
        return {"record": NOT_TOLD}
    try:
        told = parse_json(record) if isinstance(record, str) else record
        check_fields(told, {"sites": OBJECT})
        for facts in told["sites"].values():
            check_fields(facts, {"eraser": DIGEST, "layers": list_of(TEXT)})
    except ValueError as error:
        raise ValueError(f"the record of the erasers is damaged ({error}): write the file again") from error
    return told


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        known = "erasers, moments, a scrubber's or an adapter's folder, or GGUF"
        raise ValueError(f"{path} is damaged, or none of what is known ({error}), expected {known}") from error
    if HEADER in metadata and "sha256" in metadata:
        try:
            header = parse_json(metadata[HEADER])
            check_fields(header, {"kind": TEXT})
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): write it again, or fetch it again") from error
        return _own(path, header["kind"])
    if KEY in metadata:
        return {"kind": "weights of a LoRA adapter", **_told(metadata[KEY])}
    raise ValueError(f"{path} is a safetensors file {NOT_TOLD}: erasers, moments and adapters of leace-fast tell it")


def _own(path: Path, kind: Any) -> dict[str, Any]:
    """A file of this package, whose checksum is looked at."""
    if kind in ERASERS:
        return {"kind": kind, **_facts(ERASERS[kind].load(path))}
    if kind == "moments":
        moments = Moments.load(path)
        return {"kind": kind, "dim": moments.dim, "rows": moments.count}
    return {"kind": str(kind)}
