"""The probes of an evaluation: which rows train them, which test them, and which may do neither."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .._progress import Track
from .._warnings import warn
from ..folding import folded_sites
from ..models import LABELS, Inside, describe, device_of, inputs_of, item_size, resolve_sites
from ..scrubbing import Scrubber, Seen
from ._gathering import SiteRows
from ._groups import TEST, TRAIN, Groups, Parts, classes_of, labelled, only
from ._probe import Probe, linear_probe

MEMORY = 2**29  # bytes of rows that are held, of all sites, to train on and to test on
WORKING = 24  # bytes that a probe takes beside, for each number in the rows of its site to train on, and to test on


class Probing:
    """The probes of a model's sites, and the rows that they are trained and tested on.

    Args:
        inside: any module.
        scrubber: whose erasers act; what it was fitted on is refused.
        sites: as in `evaluate`.
        by_turns: whether every other group of the batches to test on trains, as `Parts` has it.
        most: rows of a site to train on, and to test on.
        in_sample: whether batches are taken on which the scrubber was fitted.
    """

    def __init__(
        self, inside: Inside, scrubber: Scrubber | None, sites: Any, by_turns: bool, most: int, in_sample: bool
    ) -> None:
        self.inside, self.model, self.scrubber, self.most = inside, inside.model, scrubber, most
        self.wanted = inside.sites(sites if sites is not None else "norms" if scrubber is None else list(scrubber))
        self.in_sample = in_sample and scrubber is not None
        self.groups, self.parts = Groups(), Parts(by_turns)
        self.rows: list[SiteRows] = []  # to train on, and to test on
        self.count = 0

    @property
    def names(self) -> list[str]:
        """The sites, none before the first labelled batch."""
        return self.rows[TRAIN].names if self.rows else []

    def admit(self, batch: Mapping[str, Any], index: int, stream: int, example: Mapping[str, Any]) -> None:
        """Look at a batch before it runs: a trace for the sites, which must be of the clean model, comes here.

        Args:
            batch: to train on, or to test on.
            index: its number among those.
            stream: TRAIN or TEST; where groups train and test by turns, both come of the latter.
            example: inputs of the model, on which it is traced.

        Raises:
            ValueError: its labels are of several concepts, or the erasers were fitted on it.
            TypeError: its labels are no tensor.

        Warns:
            UserWarning: its labels are real-valued.
        """
        if not has_classes(batch):
            if batch.get(LABELS) is not None:
                warn(
                    f"{LABELS} are real-valued, and probes read classes: nothing is probed", about="real-valued labels"
                )
            return
        if isinstance(labels := batch[LABELS], Mapping):
            raise ValueError(
                f"{LABELS} names several concepts ({', '.join(labels)}): evaluate one of them at a time, or probe=False"
            )
        if not isinstance(labels, Tensor):
            raise TypeError(f"in batch {index}: {LABELS} is {describe(labels)}, expected a tensor")
        self._refuse_seen(batch, index, stream)
        if not self.rows:
            self._start(example, labels.ndim > 1)

    def gathering(self, batch: Mapping[str, Any], index: int, stream: int) -> list[AbstractContextManager[None]]:
        """What takes in the rows of a batch, or of a piece of it; to be entered where the erasers act.

        Args:
            batch, index, stream: as in `admit`.

        Raises:
            ValueError, TypeError: its groups or labels do not fit.
        """
        if not has_classes(batch):
            return []
        groups = self.groups.of(batch, index)
        sides = self.parts.of(groups, classes_of(batch, groups), stream, bool(self.groups.given))
        self.count += 1
        present = set(sides.unique().tolist()) - {-1}
        return [self.rows[side].gathering(only(batch, sides == side), self.count, groups) for side in present]

    def fitted(self, track: Track) -> dict[str, Probe]:
        """A probe at each site."""
        names = self.names
        for site in names:
            for side, what in ((TRAIN, "train"), (TEST, "test")):
                if not self.rows[side].count(site):
                    raise ValueError(
                        f"no row of {site!r} is left to {what} the probe on: give labelled batches of at least two "
                        "groups (sequences that differ, where no groups are named), or other probe_batches, or "
                        "probe=False"
                    )
            if len(classes := self.rows[TRAIN].of(site).y.unique()) < 2:
                raise ValueError(
                    f"all rows of {site!r} that train the probe are of class {int(classes[0])}: it could tell nothing, "
                    "whatever is there; give batches in which groups of several classes train, or probe=False"
                )
        return {self.inside.given(site): self._probe(site) for site in (track(names, "probe") if names else ())}

    def _probe(self, site: str) -> Probe:
        (x, y, groups), (test_x, test_y, test_groups) = (self.rows[side].of(site) for side in (TRAIN, TEST))
        options = {"groups": test_groups, "train_groups": groups, "in_sample": self.in_sample}
        try:
            return linear_probe(x, y, test_x, test_y, **options)
        except ValueError as error:
            raise ValueError(f"at {site!r}: {error}") from error

    def _refuse_seen(self, batch: Mapping[str, Any], index: int, stream: int) -> None:
        """Raise ValueError where the erasers were fitted on sequences of a batch."""
        seen = None if self.scrubber is None or self.in_sample else self.scrubber._seen
        if seen is not None and (found := _labelled_and_seen(batch, seen)):
            name = "probe_batches" if stream == TRAIN else "batches"
            more = f" and {len(found) - 1} more of it" if len(found) > 1 else ""
            raise ValueError(
                f"the erasers were fitted on sequence {found[0]} of batch {index} of {name}{more}: in such rows a "
                "linear probe reads nothing, whatever it reads in others. Give batches that were held out, or "
                "`without_seen` of these; or pass in_sample=True, which names the figures in-sample, or probe=False"
            )

    def _start(self, example: Mapping[str, Any], by_token: bool) -> None:
        sites = resolve_sites(self.model, inputs_of(example, device_of(self.model)), self.wanted, by_token)
        if folded := {site.name for site in sites} & set(folded_sites(self.model)):
            raise ValueError(
                f"the eraser of {min(folded)!r} is folded into the weights that read it: what it gives out still holds "
                "the concept, and a probe there would tell of a leak that is none. unfold_ the model and evaluate it "
                "with the scrubber, name sites that were not folded, or pass probe=False"
            )
        width = sum(site.width for site in sites) * item_size(self.model)
        beside = WORKING * max(site.width for site in sites)
        most = min(self.most, MEMORY // (2 * width), 2 * MEMORY // (2 * width + beside))
        self.rows = [SiteRows(self.model, sites, most) for _ in (TRAIN, TEST)]


def has_classes(batch: Mapping[str, Any]) -> bool:
    """Whether a batch has labels that name classes."""
    labels = batch.get(LABELS)
    return labels is not None and not (isinstance(labels, Tensor) and labels.is_floating_point())


def without_seen(batch: Mapping[str, Any], scrubber: Scrubber | None) -> Mapping[str, Any]:
    """A batch in which sequences that erasers were fitted on have no label: a text may occur twice.

    Args:
        batch: with `concept_labels`, of classes.
        scrubber: whose erasers; None for none.

    >>> without_seen({"input_ids": torch.tensor([[1, 2]]), "concept_labels": torch.tensor([[0, 1]])}, None)
    {'input_ids': tensor([[1, 2]]), 'concept_labels': tensor([[0, 1]])}
    """
    seen = None if scrubber is None else scrubber._seen
    if seen is None or LABELS not in batch or not (found := _labelled_and_seen(batch, seen)):
        return batch
    kept = torch.ones(len(batch[LABELS]), dtype=torch.bool)
    kept[found] = False
    return only(batch, kept)


def _labelled_and_seen(batch: Mapping[str, Any], seen: Seen) -> list[int]:
    """The places in a batch of sequences that have a label and that erasers were fitted on."""
    kept = labelled(batch, torch.arange(len(batch[LABELS])))
    return [place for place in seen.found(batch) if kept[place]]
