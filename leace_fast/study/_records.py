"""What a study finds: at each site, of the loss, and as a whole."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..erasers import Eraser
from ..evaluation import bits_per_byte

SLACK = 0.01  # how far a probe's accuracy may lie from the best constant's
QUIET = 0.1  # share of the concept's rise in loss that random subspaces may cause


@dataclass(frozen=True)
class SiteResult:
    """What a linear probe reads at one site: shares of the held-out rows that it names rightly."""

    site: str
    width: int
    rank: int
    before: float
    after: float  # in the scrubbed model: each eraser was fitted on what the earlier ones leave
    constant: float  # the best constant answer, fitted on the probe's training rows
    one_pass: float | None  # in the model with erasers that were all fitted on the clean model
    not_erased: tuple[str, ...] = ()

    @property
    def guarded(self) -> bool:
        """Tell whether the probe after erasure is within a point of the best constant."""
        return abs(self.after - self.constant) <= SLACK


@dataclass(frozen=True)
class Loss:
    """Nats per scored token of the held-out text, and what turns them into bits per byte."""

    clean: float
    erased: float  # scrubbed: at all sites, each eraser fitted on what the earlier ones leave
    one_pass: float  # at all sites, all erasers fitted on the clean model
    random: tuple[float, ...]  # random subspaces of the same ranks, one value a seed
    tokens: int
    text_bytes: int

    @property
    def random_rise_share(self) -> float:
        """The mean rise of the random erasures as a share of the concept's rise."""
        rise = self.erased - self.clean
        return (sum(self.random) / len(self.random) - self.clean) / rise if rise else float("nan")

    def bits(self, nats: float) -> float:
        """Turn nats per token into bits per byte."""
        return bits_per_byte(nats * self.tokens, self.text_bytes)


@dataclass(frozen=True)
class Study:
    """What was fitted and what was found."""

    sites: tuple[SiteResult, ...]
    loss: Loss | None  # None where the model predicts no next token
    class_names: tuple[str, ...]
    rows: dict[str, int]  # labelled rows that each part used
    seconds: dict[str, float]  # by stage, in order
    erasers: dict[str, Eraser] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the erasers as plain types, for JSON."""
        loss = None
        if self.loss is not None:
            bits = {
                "clean": self.loss.bits(self.loss.clean),
                "erased": self.loss.bits(self.loss.erased),
                "one_pass": self.loss.bits(self.loss.one_pass),
                "random": [self.loss.bits(nats) for nats in self.loss.random],
            }
            rise = self.loss.random_rise_share
            loss = {**dataclasses.asdict(self.loss), "bits_per_byte": bits, "random_rise_share": rise}
        return {
            "sites": [{**dataclasses.asdict(site), "guarded": site.guarded} for site in self.sites],
            "loss": loss,
            "class_names": list(self.class_names),
            "rows": self.rows,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }
