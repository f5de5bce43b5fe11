"""`evaluate`: what a model loses, and what can still be read inside it, when erasers act in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._progress import Track, untracked
from ..models import LABELS, Site, check_inputs, device_of, evaluating, inputs_of, resolve_sites
from ..scrubbing import Scrubber
from ._gathering import SiteRows, erased, every_other_sequence, every_row
from ._losses import batch_losses, bits_per_byte
from ._probe import Probe, linear_probe

PROBE_ROWS = 20_000
TRAIN, TEST = 0, 1


@dataclass(frozen=True)
class Evaluation:
    """A model with erasers in it, or without, on some text.

    Attributes:
        tokens: tokens that were scored.
        nats: mean cross-entropy of a scored token; None where the model predicts none.
        kl: mean divergence, in nats, of the model from the clean one at a scored token; None without erasers.
        text_bytes: bytes of the text that the scored tokens stand for; 0 if unknown.
        probes: held-out accuracy of a linear probe of the concept inside the model, by site.
    """

    tokens: int
    nats: float | None
    kl: float | None = None
    text_bytes: int = 0
    probes: Mapping[str, Probe] = field(default_factory=dict)

    @property
    def perplexity(self) -> float | None:
        """The exponential of the cross-entropy."""
        return None if self.nats is None else math.exp(self.nats)

    @property
    def bits_per_byte(self) -> float | None:
        """The cross-entropy in bits for each byte of text; None if the bytes are unknown."""
        if self.nats is None or not self.text_bytes:
            return None
        return bits_per_byte(self.nats * self.tokens, self.text_bytes)

    def __str__(self) -> str:
        parts = [] if self.nats is None else [f"{self.nats:.4f} nats a token (perplexity {self.perplexity:.4g})"]
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.4f} bits a byte")
        if self.kl is not None:
            parts.append(f"KL {self.kl:.4f} nats to the clean model")
        lines = [", ".join(parts) + f", {self.tokens:,} tokens"] if parts else []
        for site, probe in self.probes.items():
            lines.append(f"  {site}: probe {probe.accuracy:.3f}, best constant {probe.constant:.3f}")
        return "\n".join(lines)


def evaluate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    scrubber: Scrubber | None = None,
    *,
    text_bytes: int = 0,
    probe: bool = True,
    probe_batches: Iterable[Mapping[str, Any]] | None = None,
    sites: str | Iterable[str] | Iterable[Site] | None = None,
    probe_rows: int = PROBE_ROWS,
    track: Track = untracked,
) -> Evaluation:
    """Measure a model on batches, with the erasers of a scrubber at work or, without one, as it is.

    The tokens that `labels` names are scored (-100 for others; without `labels`, those of `attention_mask`), each
    predicted from those before it, or at its own place by a model that is no causal one. Where batches have
    `concept_labels`, a logistic regression at each site is trained and tested on what the model itself has there.

    Args:
        model: any module; loss is measured where its output has `logits` (batch, length, vocabulary).
        batches: held-out inputs by name, as in `scrub`; read once.
        scrubber: the erasers.
        text_bytes: bytes of UTF-8 text that the scored tokens stand for, for bits per byte.
        probe: whether to probe, where batches have `concept_labels`.
        probe_batches: what the probes are trained on, such as the batches that the erasers were fitted on, while all
            of `batches` tests them; None to train on each other sequence of `batches` and to test on the rest.
        sites: where to probe; None for those of the scrubber, or the norms.
        probe_rows: most rows that a probe is trained or tested on, drawn evenly, always the same ones.
        track: `track(items, stage)` returns the items and may show progress.

    Raises:
        ValueError: no batches, labels that do not fit, or erasers of another model.
        TypeError: the model is no module, or one batch came in the place of several.

    >>> block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    >>> rows = {"input": torch.randn(64, 3, 4), "concept_labels": torch.arange(64) // 2 % 2}
    >>> list(evaluate(nn.Sequential(block), [rows]).probes)
    ['0.0']
    """
    check_inputs(model, batches)
    if scrubber is not None:
        scrubber.check_model(model)
    probes = _Probes(model, scrubber, sites, by_turns=probe_batches is None) if probe else None
    device = device_of(model)

    def run(batch: Mapping[str, Any], number: int, *sides: int) -> Any:
        gathering = probes.gathering(batch, number, sides) if probes else []
        with ExitStack() as stack:
            for context in (erased(model, scrubber), *gathering):
                stack.enter_context(context)
            return model(**inputs_of(batch, device))

    sums, count = torch.zeros(3, dtype=torch.float64), 0
    with torch.no_grad(), evaluating(model):
        for number, batch in enumerate(track((probe_batches or ()) if probe else (), "probe: train")):
            run(batch, number, TRAIN)
        for number, batch in enumerate(track(batches, "evaluate")):
            output = run(batch, number, *((TRAIN, TEST) if probe_batches is None else (TEST,)))
            clean = model(**inputs_of(batch, device)) if scrubber is not None else None
            sums += batch_losses(model, batch, output, clean)
            count += 1
    if not count:
        raise ValueError("got no batches, expected some to evaluate on")
    nats, kl, tokens = sums.tolist()
    return Evaluation(
        tokens=int(tokens),
        nats=nats / tokens if tokens else None,
        kl=kl / tokens if tokens and scrubber is not None else None,
        text_bytes=text_bytes,
        probes=probes.fitted(track, probe_rows) if probes else {},
    )


class _Probes:
    """The probes of a model's sites, and the rows that they are trained and tested on."""

    def __init__(self, model: nn.Module, scrubber: Scrubber | None, sites: Any, by_turns: bool) -> None:
        self.model = model
        self.wanted = sites if sites is not None else "norms" if scrubber is None else list(scrubber)
        self.samplers = [every_other_sequence(turn) if by_turns else every_row for turn in (TRAIN, TEST)]
        self.rows: list[SiteRows] = []  # to train on, and to test on

    def gathering(
        self, batch: Mapping[str, Any], number: int, sides: Sequence[int]
    ) -> list[AbstractContextManager[None]]:
        """What takes in the rows of a batch, none where it has no classes; to be entered where the erasers act."""
        labels = batch.get(LABELS)
        if labels is None or (isinstance(labels, Tensor) and labels.is_floating_point()):
            return []
        if isinstance(labels, Mapping):
            raise ValueError(
                f"{LABELS} names several concepts ({', '.join(labels)}): evaluate one of them at a time, or probe=False"
            )
        if not self.rows:
            # here and not inside: the trace of the sites is that of the clean model
            sites = resolve_sites(self.model, inputs_of(batch, device_of(self.model)), self.wanted)
            self.rows = [SiteRows(self.model, sites, sampler) for sampler in self.samplers]
        return [self.rows[side].gathering(batch, number) for side in sides]

    def fitted(self, track: Track, most: int) -> dict[str, Probe]:
        """A probe at each site, of at most so many rows on either side."""
        names = self.rows[TRAIN].names if self.rows else ()
        for site in names:
            for side, what in ((TRAIN, "train"), (TEST, "test")):
                if not self.rows[side].count(site):
                    raise ValueError(
                        f"no row of {site!r} is left to {what} the probe on: give labelled batches of at least two "
                        "sequences, or probe_batches, or probe=False"
                    )
        return {
            site: linear_probe(*self.rows[TRAIN].of(site, most), *self.rows[TEST].of(site, most))
            for site in (track(names, "probe") if names else ())
        }
