"""`evaluate`: what a model loses, and what can still be read inside it, when erasers act in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .._progress import Track, untracked
from .._warnings import once
from ..models import GROUPS, Inside, Site, as_before, check_inputs, describe, evaluating, with_groups
from ..scrubbing import Scrubber
from ._groups import TEST, TRAIN
from ._losses import bits_per_byte
from ._passes import Passes
from ._probe import Probe
from ._probing import Probing

PROBE_ROWS = 20_000  # see .011 nats of two classes at width 256 for sure
MOST_NATS = 709.0  # whose exponential a float holds


@dataclass(frozen=True)
class Evaluation:
    """A model with erasers in it, or without, on some text.

    Attributes:
        tokens: tokens that were scored.
        nats: mean cross-entropy of a scored token; None where the model predicts none.
        kl: mean divergence, in nats, of the model from the clean one at a scored token; None without erasers.
        text_bytes: bytes of the text that the scored tokens stand for; 0 if unknown.
        probes: what a linear probe reads of the concept inside the model, by site.
    """

    tokens: int
    nats: float | None
    kl: float | None = None
    text_bytes: int = 0
    probes: Mapping[str, Probe] = field(default_factory=dict)

    @property
    def perplexity(self) -> float | None:
        """The exponential of the cross-entropy; infinite where no float holds it."""
        if self.nats is None:
            return None
        return math.exp(self.nats) if self.nats < MOST_NATS else math.inf

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
            lines.append(f"  {site}: {probe}")
        return "\n".join(lines)


@once()
def evaluate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    scrubber: Scrubber | None = None,
    *,
    text_bytes: int = 0,
    probe: bool = True,
    probe_batches: Iterable[Mapping[str, Any]] | None = None,
    groups: str = GROUPS,
    in_sample: bool = False,
    sites: str | Iterable[str] | Iterable[Site] | None = None,
    probe_rows: int = PROBE_ROWS,
    track: Track = untracked,
) -> Evaluation:
    """Measure a model on batches, with the erasers of a scrubber at work or, without one, as it is.

    The tokens that `labels` names are scored (-100 for others; without `labels`, those of `attention_mask`), each
    predicted from those before it, or at its own place by a model that is no causal one. Where batches have
    `concept_labels`, a logistic regression at each site is trained and tested on what the model itself has there.

    What erasers were fitted on, what probes are trained on and what they are tested on are three parts that share no
    group: on the rows that an eraser was fitted on, no linear probe can read anything, whatever it reads elsewhere.

    Args:
        model: any module; loss is measured where its output has `logits` (batch, length, vocabulary).
        batches: held-out inputs by name, as in `scrub`; read once.
        scrubber: the erasers.
        text_bytes: bytes of UTF-8 text that the scored tokens stand for, for bits per byte.
        probe: whether to probe, where batches have `concept_labels`.
        probe_batches: what the probes are trained on, while all of `batches` tests them but sequences that train; None
            to train on every other group of `batches` and to test on the rest: by class, where groups have one each.
        groups: the entry of a batch that says which text, speaker or the like its tokens are of: int64 (batch,) or
            (batch, length), 0 or more. Without it, each sequence is a group, and the same sequence is the same group.
        in_sample: whether sequences that the erasers were fitted on may be probed: then all figures of the probes are
            named "in-sample", and say nothing of other rows.
        sites: where to probe; None for those of the scrubber, or the norms.
        probe_rows: most rows that a probe is trained or tested on, drawn evenly, always the same ones; fewer where
            those of all sites would take more than 512 MiB, or with what a probe needs beside them 1 GiB.
        track: `track(items, stage)` returns the items and may show progress.

    Raises:
        ValueError: no batches, labels or groups that do not fit, a group in both `batches` and `probe_batches`,
            sequences to probe that the erasers were fitted on, no rows or one class alone to train a probe on, or
            erasers of another model.
        TypeError: the model is no module, or one batch came in the place of several.

    >>> block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    >>> rows = {"input": torch.randn(64, 3, 4), "concept_labels": torch.arange(64) // 2 % 2}
    >>> list(evaluate(nn.Sequential(block), [rows]).probes)
    ['0.0']
    """
    _check(model, batches, scrubber, probe_batches, probe_rows)
    by_turns, inside = probe_batches is None, Inside(model)
    probes = Probing(inside, scrubber, sites, by_turns, probe_rows, in_sample) if probe else None
    passes = Passes(inside, scrubber, probes)
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    with torch.no_grad(), as_before(inside.model), evaluating(inside.model):
        for number, batch in enumerate(track((probe_batches or ()) if probe else (), "probe: train")):
            passes.run(with_groups(batch, groups, number), number, TRAIN, score=False)
        for number, batch in enumerate(track(batches, "evaluate")):
            sums += passes.run(with_groups(batch, groups, number), number, TEST)
            count += 1
    if not count:
        raise ValueError("got no batches, expected some to evaluate on")
    nats, kl, tokens = sums.tolist()
    return Evaluation(
        tokens=int(tokens),
        nats=nats / tokens if tokens else None,
        kl=kl / tokens if tokens and scrubber is not None else None,
        text_bytes=text_bytes,
        probes=probes.fitted(track) if probes else {},
    )


def _check(model: nn.Module, batches: Any, scrubber: Any, probe_batches: Any, probe_rows: Any) -> None:
    """Raise for arguments of `evaluate` that are none."""
    check_inputs(model, batches)
    if probe_batches is not None:
        check_inputs(model, probe_batches, "probe_batches")
    if isinstance(probe_rows, bool) or not isinstance(probe_rows, int) or probe_rows < 1:
        raise ValueError(f"probe_rows is {probe_rows!r}, expected an integer of 1 or more")
    if scrubber is None:
        return
    if not isinstance(scrubber, Scrubber):
        raise TypeError(
            f"scrubber is {describe(scrubber)}, expected a Scrubber: for one site, Scrubber({{site: eraser}})"
        )
    scrubber.check_model(model)
