"""`record`: streams the activations of ordinary forward calls into `Moments`, site by site."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._warnings import warn
from ..statistics import GPU_ROW_DTYPES, IGNORE, Aside, Kind, Moments, check_shapes, serves, update_all
from ._batch_labels import MASK, BatchLabels, decoder_sites
from ._hooks import tap
from ._inside import Inside
from ._modules import GROUPS, LABELS
from ._sites import Site, resolve_sites


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
    length, target_dim) or (batch, target_dim). Tokens that `attention_mask` (batch, length) masks are left out. With
    `concept_groups`, integers (batch,) or (batch, length), the class sums of each group are kept too.
    The outputs of all sites are held until the forward pass ends, then added at once: a pass that fails adds
    nothing. Erasers that are attached around the block have acted on what is recorded. On a GPU the rows of each site
    are copied as it runs, and their products are taken on a stream of their own, beside the next pass.

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
    inside = Inside(model)
    Moments(1, **options)  # says what is wrong with the options before anything runs
    if num_classes is None and target_dim is None:
        raise ValueError("record got neither num_classes nor target_dim, expected one of them")
    with ExitStack() as stack:
        recorder = _Recorder(inside, sites, options, stack)
        stack.callback(recorder.aside.join)
        # prepended: no other hook, and not the model, meets a keyword that it does not know
        begin, commit = _eager(recorder.begin), _eager(recorder.commit)
        stack.callback(model.register_forward_pre_hook(begin, prepend=True, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(commit).remove)
        yield recorder.moments
        if not recorder.moments:
            warn("record: no forward call of this model was recorded")


class _Recorder:
    """One recording: labels taken at the start of a forward pass, outputs held, everything added at its end."""

    def __init__(self, inside: Inside, sites: Any, options: dict[str, Any], stack: ExitStack) -> None:
        self.inside, self.model = inside, inside.model
        self.options, self.stack = options, stack
        self.moments: dict[str, Moments] = {}
        self.made: dict[str, Moments] = {}  # the same, before the first pass has ended too
        self.aside = Aside()
        self.sites: list[Site] = []
        self.wanted = "norms" if sites is None else inside.sites(sites)
        self.decoder: set[str] = set()
        self.held: dict[str, tuple[Tensor, int | None] | None] = {}  # None: staged by its moments
        self.batch: BatchLabels | None = None
        self.groups: BatchLabels | None = None
        self.busy = False

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.busy:  # the traced pass
            return None
        self._forget()  # what a pass that failed has left
        if kwargs.get(LABELS) is None:
            raise ValueError(
                f'record needs the labels of every batch: pass "{LABELS}" with the model\'s inputs, (batch, length) '
                f"with {IGNORE} for tokens to leave out, or (batch,) for whole sequences"
            )
        kwargs = dict(kwargs)
        labels = kwargs.pop(LABELS)
        groups = kwargs.pop(GROUPS, None)
        example = {**inspect.signature(self.model.forward).bind_partial(*args).arguments, **kwargs}
        device = labels.device if isinstance(labels, Tensor) else torch.device("cpu")
        # Where kernels take the rows, they count what is no label and no mask: nothing waits for the device here.
        batch = BatchLabels(labels, example, self.options["target_dim"], look=not serves(device))
        self.groups = None if groups is None else BatchLabels(groups, example, name=GROUPS)
        self._check(batch)
        if not self.sites:
            self.busy = True
            try:
                self._start(args[0] if len(args) == 1 and not kwargs else example, len(batch.lead) > 1)
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
            kept = held[site.name]
            if kept is None:
                continue
            x, version = kept
            if version is not None and x._version != version:
                raise RuntimeError(f"the model changed the output of {site.name!r} in place: it cannot be recorded")
            decoder = site.name in self.decoder
            groups = None if self.groups is None else self.groups.rows(site.name, x, decoder)[0]
            rows.append((self._moments_of(site.name, x), x, *batch.rows(site.name, x, decoder), groups))
        # nothing can be wrong with the rows from here on: all sites are added to, or none; tensors made in inference
        # mode could not be updated outside of it
        with torch.inference_mode(False), torch.no_grad():
            names = ("x", "y", "mask", "groups")
            update_all([(moments, dict(zip(names, parts, strict=True))) for moments, *parts in rows])
            for moments in [self.made[name] for name, kept in held.items() if kept is None]:
                with self.aside.on(moments.device):
                    moments._commit()
        if not self.moments:
            self.moments.update({self.inside.given(site.name): self.made[site.name] for site in self.sites})

    def _forget(self) -> None:
        """Drop the pass that is under way."""
        self.held, self.batch = {}, None
        for moments in self.made.values():
            moments._drop()
        if not self.moments:
            self.made = {}

    def _moments_of(self, name: str, x: Tensor) -> Moments:
        """Return the moments of a site whose output is x."""
        if name not in self.made:
            with torch.inference_mode(False):
                self.made[name] = Moments(x.shape[-1], device=x.device, **self.options)
        return self.made[name]

    def _start(self, example: Any, by_token: bool) -> None:
        sites = resolve_sites(self.model, example, self.wanted, by_token)
        self.decoder = decoder_sites(self.model, [site.name for site in sites])
        self.stack.enter_context(tap(self.model, sites, _eager(self._hold)))
        self.sites = sites

    def _hold(self, name: str, output: Tensor) -> None:
        if self.batch is None:
            return
        if name in self.held:
            raise ValueError(f"{name!r} ran twice in one forward pass: record sites that run once")
        if self.groups is None and serves(output.device) and output.dtype in GPU_ROW_DTYPES:
            rows = self.batch.rows(name, output, name in self.decoder)
            self._moments_of(name, output)._stage(output.detach(), *rows)
            self.held[name] = None
        elif output.is_inference():  # has no version by which a change in place would show
            self.held[name] = (output.clone(), None)
        else:
            self.held[name] = (output.detach(), output._version)

    def _check(self, batch: BatchLabels) -> None:
        # range and dtype are checked by the one who knows them, before the model runs
        if serves(batch.labels.device):
            x = torch.empty(*batch.lead, 1, device="meta")
            check_shapes(Kind(1, **self.options), x, batch.labels)
            return
        mask = batch.masks[MASK].cpu() if MASK in batch.masks and len(batch.lead) == 2 else None
        Moments(1, **self.options).update(torch.zeros(*batch.lead, 1), batch.labels.cpu(), mask=mask)


def _eager(hook: Any) -> Any:
    # what a compiled model would trace of the hook is its bookkeeping, which happens at run time
    return torch.compiler.disable(hook)
