"""`record`: streams the activations of ordinary forward calls into `Moments`, site by site."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .moments import Moments
from .sites import LABELS, Site, find_sites, submodules, tap

MASK = "attention_mask"


@contextmanager
def record(
    model: nn.Module,
    sites: str | Iterable[str] | Iterable[Site] | None = None,
    *,
    num_classes: int | None = None,
    target_dim: int | None = None,
    per_class: bool = False,
    nonfinite: Literal["raise", "skip"] = "raise",
) -> Iterator[dict[str, Moments]]:
    """Record `Moments` by site from the forward calls of `model` inside the `with` block.

    Each call takes the batch's `concept_labels`, which the model does not see: integers (batch, length) with -100
    for tokens to leave out, or (batch,) for all tokens of a sequence; real-valued with `target_dim`: (batch,
    length, target_dim) or (batch, target_dim). Tokens that `attention_mask` (batch, length) masks are left out.
    The outputs of all sites are held until the forward pass ends, then added at once: a pass that fails adds
    nothing. Erasers that are attached around the block have acted on what is recorded.

    Args:
        model: a module; only calls of this very module are recorded.
        sites: as in `find_sites`, which one more pass over the first batch traces; or what it returned; None for
            the norms.
        num_classes, target_dim, per_class, nonfinite: as in `Moments`.

    Yields:
        The moments by site, in order of execution; filled by the first call.

    Raises:
        ValueError: options that do not fit; in a forward call: no labels, labels or a mask of a wrong shape, a site
            that did not run exactly once.
        TypeError: labels or a mask of a wrong dtype.

    >>> block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    >>> model = nn.Sequential(block, nn.Linear(4, 2))
    >>> with record(model, num_classes=2) as moments, torch.no_grad():
    ...     model(torch.randn(3, 5, 4), concept_labels=torch.tensor([0, 1, 1])).shape
    torch.Size([3, 5, 2])
    >>> moments["0.0"].class_counts.tolist()
    [5, 10]
    """
    options = {"num_classes": num_classes, "target_dim": target_dim, "per_class": per_class, "nonfinite": nonfinite}
    Moments(1, **options)  # says what is wrong with the options before anything runs
    with ExitStack() as stack:
        recorder = _Recorder(model, sites, options, stack)
        # prepended: no other hook, and not the model, meets a keyword that it does not know
        begin, commit = _eager(recorder.begin), _eager(recorder.commit)
        stack.callback(model.register_forward_pre_hook(begin, prepend=True, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(commit).remove)
        yield recorder.moments
        if not recorder.moments:
            warnings.warn("record: no forward call of this model was recorded", stacklevel=3)


class _Recorder:
    """One recording: labels taken at the start of a forward pass, outputs held, everything added at its end."""

    def __init__(self, model: nn.Module, sites: Any, options: dict[str, Any], stack: ExitStack) -> None:
        self.model: Any = model
        self.options, self.stack = options, stack
        self.moments: dict[str, Moments] = {}
        self.sites: list[Site] = []
        self.wanted = "norms" if sites is None else sites if isinstance(sites, str) else list(sites)
        self.decoder: set[str] = set()
        self.held: dict[str, tuple[Tensor, int | None]] = {}
        self.batch: dict[str, Any] | None = None
        self.busy = False

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.busy:  # the traced pass
            return None
        self.held, self.batch = {}, None  # of a pass that failed
        if kwargs.get(LABELS) is None:
            raise ValueError(
                f'record needs the labels of every batch: pass "{LABELS}" with the model\'s inputs, (batch, length) '
                "with -100 for tokens to leave out, or (batch,) for whole sequences"
            )
        kwargs = dict(kwargs)
        labels = kwargs.pop(LABELS)
        example = {**inspect.signature(model.forward).bind_partial(*args).arguments, **kwargs}
        batch = {name: value for name, value in example.items() if name in (MASK, f"decoder_{MASK}")}
        batch = {LABELS: labels, **{name: _mask(name, value) for name, value in batch.items() if value is not None}}
        self._check(labels, batch.get(MASK))
        if not self.sites:
            self.busy = True
            try:
                self._start(args[0] if len(args) == 1 and not kwargs else example)
            finally:
                self.busy = False
        self.batch = batch
        return args, kwargs

    def commit(self, model: nn.Module, args: Any, output: Any) -> None:
        if self.busy or self.batch is None:
            return
        held, batch, self.held, self.batch = self.held, self.batch, {}, None
        rows = []
        for site in self.sites:
            if site.name not in held:
                raise ValueError(f"{site.name!r} did not run in this forward pass: leave it out of the sites")
            x, version = held[site.name]
            if version is not None and x._version != version:
                raise RuntimeError(f"the model changed the output of {site.name!r} in place: it cannot be recorded")
            rows.append((site.name, x, *self._fit(site.name, x, batch)))
        # nothing can be wrong with the rows from here on: all sites are added to, or none; tensors made in inference
        # mode could not be updated outside of it
        with torch.inference_mode(False), torch.no_grad():
            if not self.moments:
                fresh = {name: Moments(x.shape[-1], device=x.device, **self.options) for name, x, _, _ in rows}
                self.moments.update(fresh)
            for name, x, labels, mask in rows:
                self.moments[name].update(x, labels, mask=mask)

    def _start(self, example: Any) -> None:
        if isinstance(self.wanted, list) and all(isinstance(site, Site) for site in self.wanted) and self.wanted:
            sites = self.wanted
        else:
            sites = find_sites(self.model, example, self.wanted)
        modules = submodules(self.model, [site.name for site in sites])
        if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            encoder = set(self.model.get_encoder().modules())
            self.decoder = {name for name, module in modules.items() if module not in encoder}
        self.stack.enter_context(tap(self.model, sites, _eager(self._hold)))
        self.sites = sites

    def _hold(self, name: str, output: Tensor) -> None:
        if self.batch is None:
            return
        if name in self.held:
            raise ValueError(f"{name!r} ran twice in one forward pass: record sites that run once")
        if output.is_inference():  # has no version by which a change in place would show
            self.held[name] = (output.clone(), None)
        else:
            self.held[name] = (output.detach(), output._version)

    @property
    def _lead(self) -> int:
        """Axes of the labels that are not those of batch and length."""
        return 0 if self.options["target_dim"] is None else 1

    def _check(self, labels: Any, mask: Tensor | None) -> None:
        if not isinstance(labels, Tensor):
            raise TypeError(f"{LABELS} is a {type(labels).__name__}, expected a tensor")
        lead = labels.shape[: labels.ndim - self._lead]
        if not 1 <= len(lead) <= 2 or (mask is not None and mask.shape[: len(lead)] != lead):
            fit = "" if mask is None else f", and {MASK} has shape {tuple(mask.shape)}"
            target = ", target_dim" if self._lead else ""
            raise ValueError(
                f"{LABELS} has shape {tuple(labels.shape)}{fit}; expected (batch, length{target}) with the length of "
                f"the inputs, or (batch{target or ','}) for whole sequences"
            )
        # range and dtype are checked by the one who knows them, before the model runs
        mask = mask.cpu() if mask is not None and len(lead) == 2 else None
        Moments(1, **self.options).update(torch.zeros(*lead, 1), labels.cpu(), mask=mask)

    def _fit(self, name: str, x: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The labels and the mask of each row of x, which is (batch, ..., dim) or (batch * length, dim)."""
        labels = batch[LABELS].to(x.device)
        lead, rest = labels.shape[: labels.ndim - self._lead], labels.shape[labels.ndim - self._lead :]
        mask, rows = batch.get(MASK), x.shape[:-1]
        if name in self.decoder:
            mask = batch.get(f"decoder_{MASK}")
            if len(lead) == 2:
                raise ValueError(
                    f"{name!r} is in the decoder, whose tokens have no labels: {LABELS} of shape {tuple(labels.shape)} "
                    "is for the encoder's; choose sites of the encoder, or give one label a sequence"
                )
        if len(lead) == 1:
            if mask is not None and rows == lead and mask.numel() != rows.numel():
                mask = None  # pooled: one row a sequence
            length = (rows[0] // max(lead[0], 1),) if len(rows) == 1 else rows[1:]
            labels = labels.reshape(*lead, *[1] * len(length), *rest).expand(*lead, *length, *rest)
        lead = labels.shape[: labels.ndim - self._lead]
        if rows not in (lead, (lead.numel(),)) or (mask is not None and mask.shape != lead):
            fit = "" if mask is None else f" with a mask of shape {tuple(mask.shape)}"
            raise ValueError(
                f"{LABELS} of shape {tuple(batch[LABELS].shape)}{fit} does not fit the output of {name!r}, of shape "
                f"{tuple(x.shape)}"
            )
        return labels.reshape(*rows, *rest), None if mask is None else mask.to(x.device).reshape(rows)


def _eager(hook: Any) -> Any:
    # what a compiled model would trace of the hook is its bookkeeping, which happens at run time
    return torch.compiler.disable(hook)


def _mask(name: str, mask: Any) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} is a {type(mask).__name__}, expected a tensor")
    if mask.ndim != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}, expected (batch, length), 1 for tokens and 0 for padding: record "
            "cannot tell padding from other masks"
        )
    return mask.bool()
