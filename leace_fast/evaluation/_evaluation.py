"""`evaluate`: what a model loses, and what can still be read inside it, when erasers act in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from .._progress import Track, untracked
from ..erasers import Eraser
from ..models import LABELS, MASK, BatchLabels, Site, check_inputs, decoder_sites, evaluating, find_sites, tap
from ..scrubbing import Scrubber
from ._loss import ROWS, bits_per_byte
from ._probe import Probe, linear_probe

PROBE_ROWS = 20_000
IGNORED = -100


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
    gathered = _Rows(model, scrubber, sites, probe_rows, probe)
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    with torch.no_grad(), evaluating(model):
        for number, batch in enumerate(track(probe_batches or (), "probe: train")):
            gathered.run(batch, number, train=True, test=False)
        for number, batch in enumerate(track(batches, "evaluate")):
            output = gathered.run(batch, number, train=probe_batches is None, test=True)
            clean = model(**_inputs(model, batch)) if scrubber is not None else None
            sums += _losses(model, batch, output, clean)
            count += 1
    if not count:
        raise ValueError("got no batches, expected some to evaluate on")
    nats, kl, tokens = sums.tolist()
    return Evaluation(
        tokens=int(tokens),
        nats=nats / tokens if tokens else None,
        kl=kl / tokens if tokens and scrubber is not None else None,
        text_bytes=text_bytes,
        probes=gathered.probes(track),
    )


def random_like(scrubber: Scrubber, seed: int = 0) -> Scrubber:
    """Random subspaces of the same rank at each site, each about the same mean: the control for what erasure costs.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, section 6 (the random control).

    >>> scrubber = Scrubber({"norm": Eraser(torch.eye(4)[:, :2], torch.eye(4)[:2])})
    >>> random_like(scrubber)["norm"].rank
    2
    """
    generator = torch.Generator().manual_seed(seed)
    erasers = {}
    for site, eraser in scrubber.items():
        basis = torch.randn(eraser.dim, eraser.rank, dtype=torch.float64, generator=generator)
        # the Q factor of a Gaussian matrix spans a uniformly distributed subspace
        basis = torch.linalg.qr(basis)[0].to(eraser.device)
        erasers[site] = Eraser(basis, basis.mT, eraser.mean, method="random")
    return Scrubber(erasers, scrubber.model_id, scrubber.revision, scrubber.config)


class _Rows:
    """Labelled rows of each site, gathered from forward passes, and the probes on them."""

    def __init__(self, model: Any, scrubber: Scrubber | None, sites: Any, most: int, probe: bool) -> None:
        self.model, self.scrubber, self.most, self.probe = model, scrubber, most, probe
        self.wanted: Any = sites if sites is not None else list(scrubber) if scrubber is not None else "norms"
        self.names: list[str] | None = None
        self.decoder: set[str] = set()
        self.parts: dict[tuple[str, bool], tuple[list[Tensor], list[Tensor]]] = {}

    def run(self, batch: Mapping[str, Any], number: int, train: bool, test: bool) -> Any:
        """The model's output on a batch; rows are kept for training, for testing, or by turns."""
        inputs, labels = _inputs(self.model, batch), batch.get(LABELS)
        if not self.probe or labels is None or (isinstance(labels, Tensor) and labels.is_floating_point()):
            with self._erased():
                return self.model(**inputs)
        if isinstance(labels, Mapping):
            raise ValueError(
                f"{LABELS} names several concepts ({', '.join(labels)}): evaluate one of them at a time, or probe=False"
            )
        each = BatchLabels(labels, batch)
        if self.names is None:
            self.names = self._find(inputs)

        def gather(site: str, x: Tensor) -> None:
            y, mask = each.rows(site, x, site in self.decoder)
            kept = (y != IGNORED) if mask is None else (y != IGNORED) & mask
            sequence = torch.arange(kept.numel(), device=x.device).reshape(kept.shape) // max(kept[0].numel(), 1)
            turn = sequence % 2 == 0 if train and test else torch.full_like(kept, train)
            for side in (True, False) if train and test else (train,):
                chosen = kept & (turn == side)
                rows, classes = self.parts.setdefault((site, side), ([], []))
                rows.append(x[chosen].cpu())
                classes.append(y[chosen].cpu())

        with self._erased(), tap(self.model, self.names, gather):
            return self.model(**inputs)

    def probes(self, track: Track) -> dict[str, Probe]:
        """A probe at each site."""
        return {
            site: linear_probe(*self._sample(site, True), *self._sample(site, False)) for site in self._ready(track)
        }

    def _ready(self, track: Track) -> Iterable[str]:
        if not self.parts:
            return ()
        for site in self.names or ():
            for side, what in ((True, "train"), (False, "test")):
                if not sum(len(y) for y in self.parts.get((site, side), ([], []))[1]):
                    raise ValueError(
                        f"no row of {site!r} is left to {what} the probe on: give labelled batches of at least two "
                        "sequences, or probe_batches, or probe=False"
                    )
        return track(self.names or (), "probe")

    def _sample(self, site: str, side: bool) -> tuple[Tensor, Tensor]:
        x, y = (torch.cat(part) for part in self.parts[site, side])
        step = max(1, -(-len(y) // self.most))
        return x[::step], y[::step]

    def _find(self, inputs: Mapping[str, Any]) -> list[str]:
        wanted = self.wanted if isinstance(self.wanted, str) else list(self.wanted)
        if isinstance(wanted, str) or not all(isinstance(site, Site) for site in wanted):
            wanted = find_sites(self.model, inputs, wanted)
        names = [site.name for site in wanted]
        self.decoder = decoder_sites(self.model, names)
        return names

    def _erased(self) -> Any:
        return nullcontext() if self.scrubber is None else self.scrubber.attached(self.model)


def _inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    values = {name: value for name, value in batch.items() if name != LABELS}
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}


def _losses(model: nn.Module, batch: Mapping[str, Any], output: Any, clean: Any) -> Tensor:
    """Summed nats, summed divergence from the clean output, and the number of scored tokens."""
    logits, targets = getattr(output, "logits", None), _targets(model, batch)
    sums = torch.zeros(3, dtype=torch.float64)
    if targets is None or not isinstance(logits, Tensor) or logits.shape[:-1] != targets.shape:
        return sums
    targets = targets.to(logits.device)
    before = None if clean is None else clean.logits
    if is_causal(model):
        logits, targets = logits[:, :-1], targets[:, 1:]
        before = None if before is None else before[:, :-1]
    kept = targets != IGNORED
    pieces: Sequence[Tensor] = logits[kept].split(ROWS)
    others = [None] * len(pieces) if before is None else before[kept].split(ROWS)
    for rows, wanted, other in zip(pieces, targets[kept].split(ROWS), others, strict=True):
        found = log_softmax(rows.float(), -1)
        sums[0] += cross_entropy(rows.float(), wanted, reduction="sum").double().cpu()
        if other is not None:
            true = log_softmax(other.float(), -1)
            sums[1] += (true.exp() * (true - found)).sum(dtype=torch.float64).cpu()
        sums[2] += len(wanted)
    return sums


def _targets(model: nn.Module, batch: Mapping[str, Any]) -> Tensor | None:
    if isinstance(batch.get("labels"), Tensor):
        return batch["labels"]
    ids, mask = batch.get("input_ids"), batch.get(MASK)
    if ids is None or not is_causal(model):
        return None
    return ids if mask is None else ids.masked_fill(mask == 0, IGNORED)


def is_causal(model: Any) -> bool:
    """Whether a model predicts the next token: its type says so, or it generates and has no encoder."""
    model = getattr(model, "_orig_mod", model)  # of what torch.compile returned
    if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return True
    config, can_generate = getattr(model, "config", None), getattr(model, "can_generate", None)
    return callable(can_generate) and bool(can_generate()) and not getattr(config, "is_encoder_decoder", False)
