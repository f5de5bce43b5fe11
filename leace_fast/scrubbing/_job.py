"""`Job`: what the sequential and the parallel way to scrub share."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import Track
from .._version import __version__
from ..erasers import Eraser
from ..methods import METHODS
from ..models import (
    GROUPS,
    LABELS,
    BatchLabels,
    decoder_sites,
    device_of,
    inputs_of,
    resolve_sites,
    with_groups,
)
from ..statistics import Moments
from ._checkpoint import Checkpoint, Digest
from ._concepts import Concepts
from ._fingerprint import fingerprint
from ._reading import Reading, SiteMoments
from ._replay import without_cache
from ._seen import Seen
from ._told_apart import told_apart

Fit = Callable[..., Eraser]


@dataclass
class Job:
    """One call of `scrub`.

    Attributes:
        model: the model, which is left as it was.
        fit: makes an eraser of the moments of one concept, or of a list of those of several; and of a `metric`.
        concepts: what the batches label.
        track: shows progress.
        folder: of the checkpoint, None for none.
        facts: what tells a checkpoint of this call from others: the mode, the name of the method, the sites.
        neutral: batches without labels, which count in the metric.
        all_rows: whether rows without labels, of the batches that have labels, count in the metric; where `fit` takes
            one.
        groups: the name of the batches' entry of groups.
        decoder: those of the sites that lie in the decoder of an encoder-decoder.
        seen: what it is fitted on.
    """

    model: nn.Module
    fit: Fit
    concepts: Concepts
    track: Track
    folder: str | os.PathLike[str] | None
    facts: dict[str, Any]
    neutral: Iterable[Mapping[str, Any]] = ()
    all_rows: bool = True
    groups: str = GROUPS
    decoder: set[str] = field(default_factory=set)
    seen: Seen = field(default_factory=Seen)
    grouped: bool | None = None  # whether batches have groups, once one came
    _told: str = ""  # the method, for a checkpoint

    def __post_init__(self) -> None:
        if self.folder is not None:  # at once: one that no checkpoint would know again is refused before any work
            self._told = f"{getattr(self.fit, '__name__', 'custom')} {told_apart(self.fit, 'the method')}"
        takes_metric = "metric" in inspect.signature(self.fit).parameters
        if self.has_neutral and not takes_metric:
            raise ValueError(f"the method {self.facts['method']!r} has no metric that neutral batches could count in")
        self.all_rows = self.all_rows and takes_metric

    @property
    def has_others(self) -> bool:
        """Whether rows without labels count in the metric: of labelled batches, or of neutral ones."""
        return self.all_rows or self.has_neutral

    @property
    def has_neutral(self) -> bool:
        """Whether there are neutral batches, or a stream that may have some: not every stream has a length."""
        return not isinstance(self.neutral, (list, tuple)) or bool(self.neutral)

    def read(self, batch: Any, index: int) -> tuple[dict[str, Any], Reading]:
        """A batch with its groups in their place, and what it says of its rows.

        Raises:
            ValueError, TypeError: it has no labels or groups, or not of this shape, kind or concepts; names the batch.
        """
        labels = self.labels(batch, index)
        batch = with_groups(batch, self.groups, index)
        try:
            reading = Reading.of(f"batch {index}", batch, labels)
        except (ValueError, TypeError) as error:
            raise type(error)(f"in batch {index}: {error}") from None
        grouped = reading.groups is not None
        if self.grouped not in (None, grouped):
            had = "" if grouped else "no "
            raise ValueError(f"batch {index} has {had}{self.groups}, unlike those before: give them to all or to none")
        self.grouped = grouped
        return dict(batch), reading

    def read_neutral(self, batch: Any, index: int) -> tuple[dict[str, Any], Reading]:
        """The same of a batch that counts in the metric alone: labels that it may have do not count."""
        if not isinstance(batch, Mapping):
            raise TypeError(f"neutral batch {index} is a {type(batch).__name__}, expected the model's inputs by name")
        bare = {name: value for name, value in batch.items() if name not in (LABELS, GROUPS, self.groups)}
        try:
            return bare, Reading.of(f"neutral batch {index}", bare, {})
        except (ValueError, TypeError) as error:
            raise type(error)(f"in neutral batch {index}: {error}") from None

    def labels(self, batch: Any, index: int) -> dict[str, BatchLabels]:
        """The labels of a batch by concept; a method of ours that takes one concept is refused where there are more."""
        labels, one = self.concepts.labels(batch, index), {row.fit for row in METHODS.values() if not row.several}
        if len(labels) > 1 and self.fit in one:
            enough = " or ".join(name for name, row in METHODS.items() if row.several and not row.needs)
            raise ValueError(
                f"the method {self.facts['method']!r} erases one concept, the batches have {', '.join(labels)}: "
                f"use {enough}, or scrub of one of them"
            )
        return labels

    def find(self, batch: Mapping[str, Any], reading: Reading, sites: Any) -> list[str]:
        """The names of the sites that are meant, of which `facts` and `decoder` take note."""
        by_token = any(len(each.lead) > 1 for each in reading.labels.values())
        names = [site.name for site in resolve_sites(self.model, self.inputs(batch), sites, by_token)]
        self.decoder, self.facts["sites"] = decoder_sites(self.model, names), names
        return names

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes of a batch."""
        return without_cache(self.model, inputs_of(batch, device_of(self.model)))

    def moments(self, dim: int, device: torch.device) -> SiteMoments:
        """Empty moments of a site for rows of a width."""
        others = Moments(dim, device=device) if self.has_others else None
        return SiteMoments(self.concepts.moments(dim, device), others)

    def add(self, moments: SiteMoments, site: str, x: Tensor, reading: Reading) -> None:
        """Add a batch's activations at a site.

        Raises:
            ValueError: some are not finite.
        """
        before = sum(each.skipped for each in moments.every)
        moments.add(x, reading, site, site in self.decoder, self.all_rows)
        if wrong := sum(each.skipped for each in moments.every) - before:
            raise ValueError(
                f"{wrong} activations at {site!r} are not finite in {reading.where}: leave the batch out, run the "
                "model in a dtype with more range, or choose other sites"
            )

    def eraser(self, site: str, moments: SiteMoments) -> Eraser:
        """Fit the eraser of a site.

        Raises:
            ValueError: the method refuses the moments.
            TypeError: it returns no eraser.
        """
        every = list(moments.concepts.values())
        metric = moments.metric
        try:
            eraser = self.fit(every[0] if len(every) == 1 else every, **({} if metric is None else {"metric": metric}))
        except ValueError as error:
            raise ValueError(f"at {site!r}: {error}") from error
        if not isinstance(eraser, Eraser):
            raise TypeError(f"the method returned a {type(eraser).__name__} at {site!r}, expected an Eraser")
        return eraser.with_site(site)

    def checkpoint(self, data: Digest) -> Checkpoint | None:
        """The checkpoint of this call on this data, if one is wanted.

        Raises:
            ValueError: method, model or data cannot be told from others, or the folder holds another call's checkpoint.
        """
        if self.folder is None:
            return None
        device = device_of(self.model).type
        known = {
            "version": __version__,
            "method": self._told,
            "concepts": self.concepts.options,
            "all_rows": self.all_rows,
            "neutral": self.has_neutral,
            "decoder": sorted(self.decoder),
            "autocast": str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None,
            "model": fingerprint(self.model),
            "data": str(data),
        }
        return Checkpoint(self.folder, {**self.facts, **known})

    def device_at(self, site: str) -> torch.device:
        """Where the activations of a site come to be: at its own weights, or else where the model lies."""
        parameters = self.model.get_submodule(site).parameters()
        return next((each.device for each in parameters if not each.is_meta), device_of(self.model))
