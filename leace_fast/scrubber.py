"""`Scrubber`: the erasers of one model by site, and the ways to put them into it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .eraser import Eraser
from .files import write_bytes
from .fold import FoldReport, fold_, unfold_
from .identity import Identity
from .sites import evaluating, is_norm, submodules, tap

FORMAT_VERSION = 1
INDEX = "scrubber.json"
PROBE_ROWS = 8
# of what the eraser changes on the probe rows; the same kernel on the same rows differs by nothing at all
PROBE_TOLERANCE = 0.01


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
        self._attached: WeakSet[nn.Module] = WeakSet()

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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Scrubber:
        """A scrubber whose erasers are on a device and in a dtype, as in `Eraser.to`."""
        moved = {site: eraser.to(device=device, dtype=dtype) for site, eraser in self.items()}
        return Scrubber(moved, self.model_id, self.revision, self.config)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[nn.Module]:
        """Erase at every site on each forward pass of `model` inside the `with` block, `generate` included.

        Fails closed: each norm, and each other module that takes rows, is called on probe rows, which must come out
        erased; and the model's first forward pass must have run every site. A scrubber inside another acts on what
        the outer one left.

        Raises:
            ValueError: the model lacks a site or it has another width, or this scrubber is attached to it already.
            RuntimeError: the model would run, or has run, without being erased; nothing stays attached.
        """
        self.check_model(model)
        if model in self._attached:
            raise ValueError("this scrubber is attached to this model already: an eraser acts once at a site")
        modules = submodules(model, self)
        rows = {site: _probe_rows(model, module, self[site].dim) for site, module in modules.items()}
        clean = {site: _probe(module, rows[site], self[site]) for site, module in modules.items()}
        ran: set[str] = set()

        def erase(site: str, output: Tensor) -> Tensor:
            ran.add(site)
            return self._erasers[site](output)

        def check_ran(module: nn.Module, args: Any, output: Any) -> None:
            if len(ran) < len(self):
                missing = next(site for site in self if site not in ran)
                raise RuntimeError(
                    f"the model ran without being erased at {missing!r}: this forward pass does not call that module "
                    "(replaced after it was attached, skipped, or its weights are read by a fused kernel)"
                )

        with tap(model, self, erase):
            for site, before in clean.items():
                if before is None:
                    continue
                after, wanted = _run(modules[site], rows[site]), self[site](before)
                change, off = (wanted - before).double().norm(), (after - wanted).double().norm()
                if not off <= PROBE_TOLERANCE * change:
                    raise RuntimeError(
                        f"the model would run without being erased at {site!r}: on probe rows the module's output is "
                        f"{off / change:.1%} of the erased part away from the erased one (hooks of this module do not "
                        "run, or another one changes its output)"
                    )
            ran.clear()
            handle = model.register_forward_hook(check_ran)
            self._attached.add(model)
            try:
                yield model
            finally:
                self._attached.discard(model)
                handle.remove()

    def fold_(self, model: nn.Module, example: Mapping[str, Any] | Tensor | None = None, **options: Any) -> FoldReport:
        """Fold the erasers into the weights of `model`, with the options and the refusals of `fold.fold_`."""
        return fold_(model, self, example, **options)

    def unfold_(self, model: nn.Module) -> None:
        """Restore a folded model to the bit, as `fold.unfold_`."""
        unfold_(model)

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
        except FileNotFoundError:
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


def _probe_rows(model: nn.Module, module: nn.Module, dim: int) -> Tensor:
    like = next(module.parameters(), None)
    like = next(model.parameters(), torch.empty(0)) if like is None else like
    rows = torch.randn(1, PROBE_ROWS, dim, generator=torch.Generator().manual_seed(0))
    # offloaded weights are on no device until the module runs, and take rows from the host
    return rows.to("cpu" if like.is_meta else like.device, like.dtype)


def _probe(module: nn.Module, rows: Tensor, eraser: Eraser) -> Tensor | None:
    """The module's output for the rows, or None for a module that does not take rows alone, such as a layer."""
    try:
        output = _run(module, rows)
    except Exception as error:
        if is_norm(module) and isinstance(error, (RuntimeError, ValueError)):
            width = f"rows of the eraser's width {eraser.dim}"
            raise ValueError(f"{eraser.site!r} does not take {width}: {error}") from error
        return None
    if not isinstance(output, Tensor) or output.shape[-1] != eraser.dim:
        got = f"rows of width {output.shape[-1]}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(f"the output of {eraser.site!r} is {got}, its eraser is for rows of width {eraser.dim}")
    return output


@torch.no_grad()
def _run(module: nn.Module, rows: Tensor) -> Any:
    with evaluating(module):
        return module(rows)


def _file_name(site: str) -> str:
    return quote(site, safe="") + ".safetensors"


def _digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
