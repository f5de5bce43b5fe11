"""`Scrubber`: the erasers of one model by site, and the ways to put them into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..attaching import Attachment
from ..erasers import MAX_COST_RATIO, Eraser
from ..folding import FoldReport, LoraReport, export_lora, fold_, unfold_
from ..models import Identity, check_module, unwrapped
from ._folder import find_folder, push_folder, read_folder, write_folder
from ._seen import Seen


class Scrubber(Mapping[str, Eraser]):
    """Erasers by site, for one model; a mapping that does not change.

    One that `scrub` fitted keeps a hash of each sequence that it was fitted on, by which `evaluate` refuses to probe
    these; so do the files. Whoever has a sequence can test with it whether it was used.

    Args:
        erasers: at least one eraser by the name of its site; of a `Scrubber`, its hashes are taken over.
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
        self._seen: Seen | None = erasers._seen if isinstance(erasers, Scrubber) else None
        self._attached: WeakKeyDictionary[nn.Module, Attachment] = WeakKeyDictionary()

    @classmethod
    def of_model(cls, model: nn.Module, erasers: Mapping[str, Eraser]) -> Scrubber:
        """Return a scrubber that knows which model its erasers were fitted on and is refused by others.

        Args:
            model: that the erasers were fitted on; one of transformers tells its name, revision and config.
            erasers: at least one eraser by the name of its site.

        Raises:
            TypeError, ValueError: as `Scrubber`.
        """
        found = Identity.of(model)
        return cls(erasers, found.model_id, found.revision, found.config)

    @property
    def identity(self) -> Identity:
        """The model that the erasers were fitted on, as far as it is known."""
        return Identity(self.model_id, self.revision, self.config)

    def check_model(self, model: nn.Module) -> None:
        """Refuse another model than the one that the erasers were fitted on, as far as that one is known.

        Args:
            model: that the erasers are meant for.

        Raises:
            ValueError: it is another model; says what differs.
            TypeError: it is no module.
        """
        check_module(model)
        if different := self.identity.differences(Identity.of(model)):
            raise ValueError(
                f"these erasers were fitted on another model ({'; '.join(different[:6])}): fit them on this one, or, "
                "if they are meant for it, attach Scrubber(dict(scrubber))"
            )

    def _knowing(self, seen: Seen | None) -> Scrubber:
        """This scrubber, which from now on knows what it was fitted on; None for what is not known."""
        self._seen = seen
        return self

    def __reduce__(self) -> Any:
        # a copy, or what another process gets, is attached to nothing
        return Scrubber, (self._erasers, self.model_id, self.revision, self.config), {"_seen": self._seen}

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
        """Return a scrubber whose erasers are held on a device and in a dtype; either may come first.

        Args:
            device, dtype: as in `Eraser.to`.

        Raises:
            ValueError: dtype is neither float32 nor float64.
        """
        moved = {site: eraser.to(device, dtype) for site, eraser in self.items()}
        return Scrubber(moved, self.model_id, self.revision, self.config)._knowing(self._seen)

    @contextmanager
    def attached(self, model: nn.Module, fuse: bool = False) -> Iterator[nn.Module]:
        """Erase at every site on each forward pass of `model` inside the `with` block, `generate` included.

        Fails closed: each norm, and each other module that takes rows, is called on probe rows, which must come out
        erased; in every pass each module that holds a site must run it, whatever happened since ("What must run" in
        docs/serving.md). A scrubber inside another acts on what the outer one left. What was compiled before is
        compiled again; graphs that were captured or exported before know nothing of it: see `verify`.

        Args:
            model: any module, or one in wrappers (data-parallel, compiled, with adapters), which is the one inside.
            fuse: norms erase in the pass that norms, instead of after it. Where that cannot be, because a site is no
                norm or one of another formula, a warning says so.

        Raises:
            ValueError: the model lacks a site or its weights, a site has another width, no eraser can act there, the
                erasers were fitted on another model, or this scrubber is attached to it already.
            TypeError: the model is no module.
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

        Args:
            model, fuse: as in `attached`.

        Raises:
            ValueError, TypeError, RuntimeError: as `attached`.
        """
        check_module(model)
        model = unwrapped(model)
        self.check_model(model)
        if model in self._attached:
            raise ValueError("this scrubber is attached to this model already: an eraser acts once at a site")
        self._attached[model] = Attachment(model, self, fuse)

    def detach_(self, model: nn.Module) -> None:
        """Undo `attach_`.

        Args:
            model: to which this scrubber is attached.

        Raises:
            ValueError: this scrubber is not attached to this model.
        """
        self._of(model).end()
        del self._attached[unwrapped(model)]

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
        check_module(model)
        model = unwrapped(model)
        if model not in self._attached:
            raise ValueError(
                "this scrubber is not attached to this model: call attach_(model) first (the erasers in a copy or in a "
                "loaded model cannot be detached: load its state_dict, which is clean, into a new model)"
            )
        return self._attached[model]

    def fold_(
        self,
        model: nn.Module,
        example: Mapping[str, Any] | Tensor | None = None,
        *,
        add_bias: bool = False,
        max_cost_ratio: float = MAX_COST_RATIO,
        keep_originals: bool = True,
    ) -> FoldReport:
        """Fold the erasers into the weights of `model`, with the report of `leace_fast.fold_`.

        Args:
            model, example, add_bias, max_cost_ratio, keep_originals: as in `leace_fast.fold_`.

        Raises:
            ValueError: as `leace_fast.fold_`, or the erasers were fitted on another model.
            TypeError, RuntimeError: as `leace_fast.fold_`.
        """
        self.check_model(model)
        return fold_(
            model, self, example, add_bias=add_bias, max_cost_ratio=max_cost_ratio, keep_originals=keep_originals
        )

    def unfold_(self, model: nn.Module) -> None:
        """Restore a folded model to the bit, as `leace_fast.unfold_`.

        Args:
            model: that was folded, by this scrubber or without one.

        Raises:
            ValueError: as `leace_fast.unfold_`.
        """
        unfold_(model)

    def export_lora(
        self,
        model: nn.Module,
        folder: str | os.PathLike[str],
        example: Mapping[str, Any] | Tensor | None = None,
        *,
        lora_bias: bool = False,
        split: bool = True,
        dtype: torch.dtype | None = None,
        max_cost_ratio: float = MAX_COST_RATIO,
        base_model: str | None = None,
    ) -> LoraReport:
        """Write the erasers as a LoRA adapter of `model`, with the report of `leace_fast.export_lora`.

        Args:
            model, folder, example, lora_bias, split, dtype, max_cost_ratio: as in `leace_fast.export_lora`.
            base_model: name of the model in the adapter's config; None for the one that the erasers were fitted on.

        Raises:
            ValueError: as `leace_fast.export_lora`, or the erasers were fitted on another model.
            TypeError, RuntimeError: as `leace_fast.export_lora`.
        """
        self.check_model(model)
        return export_lora(
            model,
            self,
            folder,
            example,
            lora_bias=lora_bias,
            split=split,
            dtype=dtype,
            max_cost_ratio=max_cost_ratio,
            base_model=base_model or self.model_id or None,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write one safetensors file a site, hashes of what it was fitted on, and `scrubber.json`, which comes last.

        Args:
            folder: made if it does not exist.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        write_folder(folder, self, self.identity, self._seen)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Scrubber:
        """Read what `save_pretrained` wrote or `push_to_hub` pushed, to the bit.

        Args:
            source: a folder; or, where there is none of that name, `owner/name` of the Hugging Face hub.
            device: where the erasers are held.
            revision: of the hub's repository: a branch, a tag or a commit; None for its main branch.
            token: of the hub; None for the one that is logged in.
            cache_dir: where the files of the hub are kept; None for its own cache.
            force_download: fetch files again that are kept already.
            local_files_only: fetch nothing, and read what is kept.

        Raises:
            FileNotFoundError: folder or hub hold no scrubber of that name, or it lacks the file of a site.
            ValueError: a file is damaged, belongs to another save, or has a later format.

        >>> import tempfile
        >>> scrubber = Scrubber({"norm": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scrubber.save_pretrained(folder)
        ...     Scrubber.from_pretrained(folder)
        Scrubber(1 sites: custom, rank 1)
        """
        options = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        erasers, identity, seen = read_folder(find_folder(source, options), device)
        return cls(erasers, identity.model_id, identity.revision, identity.config)._knowing(seen)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Erasers by leace-fast",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Write what `save_pretrained` writes, and a card, to the Hugging Face hub; returns the URL of the commit.

        Args:
            repo_id: `owner/name`, made if it is not there.
            commit_message: what the commit is called.
            private: whether a new repository is private; None for the owner's default.
            token: of the hub; None for the one that is logged in.
            branch: where it is pushed to; None for the main branch.
            create_pr: whether to open a pull request instead.

        Raises:
            huggingface_hub.errors.HfHubHTTPError: the hub refuses, as without a token that may write there.
        """
        commit = {"commit_message": commit_message, "revision": branch, "create_pr": create_pr}
        return push_folder(repo_id, self, self.identity, self._seen, token, private, **commit)
