"""`Scrubber`: the erasers of one model by site, and the ways to put them into it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .._files import write_bytes
from ..attaching import Attachment
from ..erasers import Eraser
from ..folding import FoldReport, LoraReport, export_lora, fold_, unfold_
from ..models import Identity

FORMAT_VERSION = 1
INDEX = "scrubber.json"


class Scrubber(Mapping[str, Eraser]):
    """Erasers by site, for one model; a mapping that does not change.

    Args:
        erasers: at least one eraser by the name of its site.
        model_id: name or path of the model that they were fitted on.
        revision: revision of that model.
        config: what defines that model; one that differs is refused.

    Raises:
        TypeError: a name is no string or a value no eraser.
        ValueError: no eraser is given.

    >>> eraser = Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])
    >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    >>> scrubber = Scrubber({"0": eraser})
    >>> with scrubber.attached(model):
    ...     model[0](torch.arange(4.0))[0].item()
    0.0
    """

    def __init__(
        self,
        erasers: Mapping[str, Eraser],
        model_id: str = "",
        revision: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if not erasers:
            raise ValueError("a scrubber needs at least one eraser, got none: it would erase nothing")
        for site, eraser in erasers.items():
            if not isinstance(site, str) or not isinstance(eraser, Eraser):
                raise TypeError(f"got {site!r}: {type(eraser).__name__}, expected the name of a site and an Eraser")
        self._erasers = {site: eraser.with_site(site) for site, eraser in erasers.items()}
        self.model_id, self.revision, self.config = model_id, revision, dict(config or {})
        self._attached: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()

    @classmethod
    def of_model(cls, model: nn.Module, erasers: Mapping[str, Eraser]) -> Scrubber:
        """A scrubber that knows which model its erasers were fitted on and is refused by others."""
        found = Identity.of(model)
        return cls(erasers, found.model_id, found.revision, found.config)

    @property
    def identity(self) -> Identity:
        """The model that the erasers were fitted on, as far as it is known."""
        return Identity(self.model_id, self.revision, self.config)

    def check_model(self, model: nn.Module) -> None:
        """Raise ValueError, with the difference, if the erasers were fitted on another model than this."""
        if different := self.identity.differences(Identity.of(model)):
            raise ValueError(
                f"these erasers were fitted on another model ({'; '.join(different[:6])}): fit them on this one, or, "
                "if they are meant for it, attach Scrubber(dict(scrubber))"
            )

    def __reduce__(self) -> Any:
        # a copy, or what another process gets, is attached to nothing
        return Scrubber, (self._erasers, self.model_id, self.revision, self.config)

    def __getitem__(self, site: str) -> Eraser:
        return self._erasers[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._erasers)

    def __len__(self) -> int:
        return len(self._erasers)

    def __repr__(self) -> str:
        ranks = sorted({eraser.rank for eraser in self.values()})
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        model = f" for {self.model_id}" if self.model_id else ""
        return f"Scrubber({len(self)} sites{model}: {', '.join(sorted({e.method for e in self.values()}))}, {rank})"

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Scrubber:
        """A scrubber whose erasers are on a device and in a dtype, as in `Eraser.to`."""
        moved = {site: eraser.to(device, dtype) for site, eraser in self.items()}
        return Scrubber(moved, self.model_id, self.revision, self.config)

    @contextmanager
    def attached(self, model: nn.Module, fuse: bool = False) -> Iterator[nn.Module]:
        """Erase at every site on each forward pass of `model` inside the `with` block, `generate` included.

        Fails closed: each norm, and each other module that takes rows, is called on probe rows, which must come out
        erased; the model's first forward pass must have run every site, and every pass the modules that have erasers.
        A scrubber inside another acts on what the outer one left. What was compiled before is compiled again; graphs
        that were captured or exported before know nothing of it: see `verify`.

        Args:
            model: any module.
            fuse: norms erase in the pass that norms, instead of after it. Where that cannot be, because a site is no
                norm or one of another formula, a warning says so.

        Raises:
            ValueError: the model lacks a site or it has another width, the erasers were fitted on another model, or
                this scrubber is attached to it already.
            RuntimeError: the model would run, or has run, without being erased; nothing stays attached.
        """
        self.attach_(model, fuse=fuse)
        try:
            yield model
        finally:
            self.detach_(model)

    def attach_(self, model: nn.Module, fuse: bool = False) -> None:
        """Erase at every site from now on, as inside `attached`, until `detach_`.

        A deep copy of the model, and what `torch.load` or another process makes of a pickled one, stays erased for
        good. Where a hook erases, as something was attached there before or the `forward` had been replaced, the copy
        refuses to run and pickling raises TypeError. A `state_dict` is that of the clean model.

        Raises:
            ValueError, RuntimeError: as `attached`.
        """
        self.check_model(model)
        if model in self._attached:
            raise ValueError("this scrubber is attached to this model already: an eraser acts once at a site")
        self._attached[model] = Attachment(model, self, fuse)

    def detach_(self, model: nn.Module) -> None:
        """Undo `attach_`.

        Raises:
            ValueError: this scrubber is not attached to this model.
        """
        self._of(model).end()
        del self._attached[model]

    def verify(self, model: nn.Module, run: Callable[..., Any], example: Mapping[str, Any] | Tensor) -> None:
        """Check that `run`, called like the model on a batch, gives what the model with its erasers attached gives.

        For what Python does not pass through any more: captured graphs, exported or traced programs.

        Args:
            model: to which this scrubber is attached.
            run: takes the keywords of `example`, or the one tensor.
            example: a batch of the model.

        Raises:
            RuntimeError: it runs without being erased, in part or wholly.
            ValueError: this scrubber is not attached to this model.

        >>> import copy
        >>> scrubber = Scrubber({"0": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])})
        >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
        >>> captured = copy.deepcopy(model)
        >>> with scrubber.attached(model):
        ...     scrubber.verify(model, captured, torch.randn(3, 4))
        Traceback (most recent call last):
        RuntimeError: the model runs without being erased: what run gives is 100.0% of the erasers' effect away ...
        """
        self._of(model).verify(model, run, example)

    def _of(self, model: nn.Module) -> Attachment:
        if model not in self._attached:
            raise ValueError(
                "this scrubber is not attached to this model: call attach_(model) first (the erasers in a copy or in a "
                "loaded model cannot be detached: load its state_dict, which is clean, into a new model)"
            )
        return self._attached[model]

    def fold_(self, model: nn.Module, example: Mapping[str, Any] | Tensor | None = None, **options: Any) -> FoldReport:
        """Fold the erasers into the weights of `model`, with the options and the refusals of `fold.fold_`."""
        self.check_model(model)
        return fold_(model, self, example, **options)

    def unfold_(self, model: nn.Module) -> None:
        """Restore a folded model to the bit, as `fold.unfold_`."""
        unfold_(model)

    def export_lora(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        example: Mapping[str, Any] | Tensor | None = None,
        **options: Any,
    ) -> LoraReport:
        """Write the erasers as a LoRA adapter in PEFT's format, with the options and refusals of `lora.export_lora`."""
        self.check_model(model)
        return export_lora(folder, model, self, example, **{"base_model": self.model_id or None, **options})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write one safetensors file a site and `scrubber.json`, which comes last and names their checksums."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sites = {}
        for site, eraser in self.items():
            eraser.save(folder / _file_name(site))
            sites[site] = hashlib.sha256((folder / _file_name(site)).read_bytes()).hexdigest()
        index = {
            "format_version": FORMAT_VERSION,
            "model_id": self.model_id,
            "revision": self.revision,
            "config": self.config,
            "sites": list(sites.items()),
        }
        write_bytes(folder / INDEX, json.dumps({**index, "sha256": _digest(index)}, indent=1).encode())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> Scrubber:
        """Read what `save_pretrained` wrote, to the bit.

        Raises:
            FileNotFoundError: the folder holds no scrubber, or lacks the file of a site.
            ValueError: a file is damaged, belongs to another save, or has a later format.
        """
        folder = Path(folder)
        try:
            index = json.loads((folder / INDEX).read_bytes())
            digest = index.pop("sha256")
            version = index["format_version"]
            damaged = version <= FORMAT_VERSION and digest != _digest(index)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{folder} holds no {INDEX}: pass a folder that save_pretrained wrote") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{folder / INDEX} is damaged ({error!r}): write it again, or fetch it again") from error
        if version > FORMAT_VERSION:
            raise ValueError(
                f"{folder / INDEX} has format version {version}, this release reads up to {FORMAT_VERSION}: "
                "update leace-fast"
            )
        if damaged:
            raise ValueError(
                f"{folder / INDEX} is damaged (its checksum does not fit): write it again, or fetch it again"
            )
        erasers = {}
        for site, digest in index["sites"]:
            path = folder / _file_name(site)
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing, which {INDEX} names: fetch the whole folder again")
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise ValueError(f"{path} is damaged or of another save than {INDEX}: write the folder again")
            erasers[site] = Eraser.load(path, device=device)
        return cls(erasers, index["model_id"], index["revision"], index.get("config"))


def _file_name(site: str) -> str:
    return quote(site, safe="") + ".safetensors"


def _digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
