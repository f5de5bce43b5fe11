"""What a study finds: at each site, of the loss, and as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..evaluation import Probe, bits_per_byte
from ..scrubbing import Scrubber

QUIET = 0.1  # share of the concept's rise in loss that random subspaces may cause


class Reading(NamedTuple):
    """What linear probes read at one site, in rows that no eraser was fitted on.

    Attributes:
        other: by a probe that was trained on some groups and tested on others.
        same: by one that was trained and tested on the same groups, on other sequences of them; None if not measured.
    """

    other: Probe
    same: Probe | None = None

    @property
    def hardest(self) -> Probe:
        """The probe that is hardest to hide from: that of the same groups, where it was measured."""
        return self.other if self.same is None else self.same

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {name: _plain(probe) for name, probe in self._asdict().items() if probe is not None}


@dataclass(frozen=True)
class SiteResult:
    """What is read at one site: in the clean model, and in the model with the erasers of each variant at work."""

    site: str
    width: int
    clean: Reading
    erased: Mapping[str, Reading]  # by variant
    ranks: Mapping[str, int]  # by variant
    not_erased: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by variant

    @property
    def constant(self) -> float:
        """The share of the test rows of the hardest probe that the best constant answer names rightly."""
        return self.clean.hardest.constant

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "site": self.site,
            "width": self.width,
            "clean": self.clean.to_dict(),
            "erased": {name: reading.to_dict() for name, reading in self.erased.items()},
            "ranks": dict(self.ranks),
            "not_erased": {name: list(what) for name, what in self.not_erased.items()},
        }


@dataclass(frozen=True)
class Fitted:
    """What a variant was fitted on, and what its reports expect; 0 and None where they do not tell.

    Attributes:
        rows: labelled rows.
        groups, effective_groups: as in `Report`.
        expected_group_leak: nats to gain on a fresh group, at the worst site.
        change: mean squared change of a row, summed over the sites.
    """

    rows: int
    groups: int
    effective_groups: float
    expected_group_leak: float | None
    change: float

    @classmethod
    def of(cls, scrubber: Scrubber) -> Fitted:
        """What the reports of a scrubber's erasers say."""
        reports = [eraser.report for eraser in scrubber.values() if eraser.report]
        leaks = [report.expected_group_leak for report in reports if report.expected_group_leak is not None]
        return cls(
            rows=max((report.rows for report in reports), default=0),
            groups=max((report.groups for report in reports), default=0),
            effective_groups=min((report.effective_groups for report in reports), default=0.0),
            expected_group_leak=max(leaks) if leaks else None,
            change=sum(report.change for report in reports),
        )


@dataclass(frozen=True)
class Loss:
    """Nats per scored token of the held-out text, and what turns them into bits per byte."""

    clean: float
    erased: Mapping[str, float]  # by variant
    random: tuple[float, ...]  # random subspaces of the ranks of the main variant, one value a seed
    tokens: int
    text_bytes: int

    def rise(self, nats: float) -> float:
        """What nats per token are above the clean model's, in bits per byte."""
        return self.bits(nats) - self.bits(self.clean)

    def random_rise_share(self, variant: str) -> float:
        """The mean rise of the random erasures as a share of a variant's rise."""
        rise = self.erased[variant] - self.clean
        return (sum(self.random) / len(self.random) - self.clean) / rise if rise else math.nan

    def bits(self, nats: float) -> float:
        """Turn nats per token into bits per byte."""
        return bits_per_byte(nats * self.tokens, self.text_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        nats = {"clean": self.clean, **{f"erased: {name}": value for name, value in self.erased.items()}}
        return {
            "nats_per_token": nats,
            "bits_per_byte": {name: self.bits(value) for name, value in nats.items()},
            "random_nats_per_token": list(self.random),
            "random_bits_per_byte": [self.bits(value) for value in self.random],
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
        }


@dataclass(frozen=True)
class Study:
    """What was fitted and what was found.

    Attributes:
        sites: in the order of the model.
        loss: None where the model predicts no next token.
        class_names: of the classes 0, 1, ...
        rows: labelled rows of each part: held out, to train probes on, to test them on.
        seconds: by stage, in order.
        scrubbers: of each variant, one of which is `main`: its erasers are kept, and random subspaces match its ranks.
        group: what a group is called: rows of one are alike.
        group_gain: accuracy over the best constant that comes of telling a row's group alone, where probes are trained
            and tested on the same groups; None where they are not.
    """

    sites: tuple[SiteResult, ...]
    loss: Loss | None
    class_names: tuple[str, ...]
    rows: Mapping[str, int]
    seconds: Mapping[str, float]
    scrubbers: Mapping[str, Scrubber] = field(repr=False)
    main: str
    group: str = "group"
    group_gain: float | None = None

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the variants."""
        return tuple(self.scrubbers)

    def worst(self, variant: str, kind: str = "other") -> Probe | None:
        """The probe that reads most above the constant, of all sites; None where that kind was not measured.

        Args:
            variant: its name.
            kind: "other" or "same", as in `Reading`.
        """
        probes = [getattr(site.erased[variant], kind) for site in self.sites]
        return max((each for each in probes if each), key=lambda probe: probe.accuracy - probe.constant, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the erasers as plain types, for JSON."""
        return {
            "sites": [site.to_dict() for site in self.sites],
            "loss": self.loss.to_dict() if self.loss else None,
            "class_names": list(self.class_names),
            "rows": dict(self.rows),
            "fitted": {name: vars(Fitted.of(scrubber)) for name, scrubber in self.scrubbers.items()},
            "main": self.main,
            "group": self.group,
            "group_gain": self.group_gain,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def _plain(probe: Probe) -> dict[str, Any]:
    """A probe for JSON, which has no infinite numbers: None for an interval of which nothing can be said."""
    values = probe._asdict()
    for name in ("accuracy_interval", "nats_interval"):
        values[name] = list(values[name]) if all(map(math.isfinite, values[name])) else None
    return values
