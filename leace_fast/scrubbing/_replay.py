"""`Replay`: forward passes of stored batches that stop at a site and later go on from there.

Nothing here knows a model family. While a batch is stopped, what its outermost completed modules returned is kept in a
`Buffer`; when it goes on, the model's own code runs again from the start, but these modules return at once what they
returned before. So each weight is multiplied once for each batch, however many sites there are. Of a stack of layers
only the last completed one is kept: those before it hand on their input, which nobody reads. Where a layer leaves
something outside of its output for later ones, nothing can be kept, and every pass runs from the start.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .._warnings import warn
from ..models import device_of, eagerly, evaluating, has_weight, items_of, tap, with_hooks
from ._buffer import Buffer
from ._stored import PLAIN, Argument, Batch, Kept, described, template_of

MOST = 4  # a module's output is kept up to so many times the size of its input: attention weights are not
CHECKED_ROWS = 64


class Stop(Exception):
    """Ends a forward pass at a site."""


class Replay:
    """Forward passes of one model, from site to site.

    Args:
        model: any module; to be used inside `running`.
        sites: names of modules, in the order in which a forward pass runs them.
        act: called with a site's name and its output when a pass comes by; returns None or what takes its place.
        buffer: where stopped passes wait.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[str], act: Callable[[str, Tensor], Tensor | None], buffer: Buffer
    ) -> None:
        self.model, self.sites, self.act, self.buffer = model, list(sites), act, buffer
        self.device = device_of(model)
        self._batch: Batch | None = None
        self._until: str | None = None
        self._reached: Tensor | None = None
        self._live: dict[str, tuple[list[Any], Any, list[int]]] = {}
        self._anew = False  # nothing of a pass is kept
        self._single: set[str] = set()  # modules that run once in a forward pass
        self._layers: dict[str, str | None] = {}  # items of lists of modules, and the one before each
        self._templates: dict[str, tuple[list[Any], Any]] = {}  # of layers that can be passed by

    @contextmanager
    def running(self, example: Batch) -> Iterator[None]:
        """Passes run inside the block; on the way in, the model is traced and the replay checked on a batch.

        Raises:
            ValueError: going on from a site gives other activations than running through; the site is named.
        """
        names = {module: name for name, module in self.model.named_modules() if name}
        own = {module: module.__dict__.get("forward") for module in names if _has_weights(module)}
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(self.model))
            stack.enter_context(eagerly())
            stack.enter_context(tap(self.model, self.sites, self._at_site))
            clean = self._trace(example, names)
            try:
                for module in own:
                    if names[module] in self._single:
                        module.forward = self._resuming(names[module], module.forward)
                self._check(example, clean)
                yield
            finally:
                for module, forward in own.items():
                    module.__dict__.pop("forward", None)
                    if forward is not None:
                        module.forward = forward

    def run(self, batch: Batch, until: str, keep: bool = True) -> Tensor:
        """Run a batch from where it stopped to a site that lies further on; return the site's output there.

        Raises:
            ValueError: the forward pass ended without running the site.
        """
        self._batch, self._until, self._reached, self._live = batch, until, None, {}
        try:
            self.model(**self._inputs(batch))
        except Stop:
            pass
        finally:
            reached, live = self._reached, self._live
            self._batch, self._until, self._reached, self._live = None, None, None, {}
        if reached is None:
            raise ValueError(f"{until!r} did not run in this forward pass: leave it out of the sites")
        if keep:
            self._store(batch, live)
        return reached

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs = batch.inputs.restore(())
        inputs = pytree.tree_map_only(Tensor, lambda value: value.to(self.device), inputs)
        return without_cache(self.model, inputs)

    # -------------------------------------------------------------- in a pass

    def _at_site(self, name: str, output: Tensor) -> Tensor | None:
        if self._batch is None or name in self._batch.passed:
            return None
        if name == self._until:
            self._reached = output
            raise Stop
        return self.act(name, output)

    def _resuming(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def resumed(*args: Any, **kwargs: Any) -> Any:
            batch = self._batch
            if batch is None or self._anew:
                return forward(*args, **kwargs)
            if name in batch.passed:
                leaves, spec = self._templates[name]
                return Kept(leaves, spec).restore((args, kwargs))
            if name in batch.kept:
                return batch.kept[name].restore((args, kwargs))
            given = pytree.tree_leaves((args, kwargs))
            versions = [_version(value) for value in given]
            output = forward(*args, **kwargs)
            self._note(name, given, versions, output)
            return output

        return resumed

    def _note(self, name: str, given: list[Any], versions: list[int], output: Any) -> None:
        """A module has completed: hold its output, and no longer those of the modules inside."""
        for inner in [key for key in self._live if key.startswith(f"{name}.")]:
            del self._live[inner]
        # an argument that was changed in place is not what it will be when the module does not run
        whole = [value for value, old in zip(given, versions, strict=True) if old == _version(value)]
        leaves, spec = described(output, given, whole)
        new = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not all(isinstance(leaf, (Tensor, Argument, *PLAIN)) for leaf in leaves):
            return
        size = max((value.nbytes for value in given if isinstance(value, Tensor)), default=0)
        if name in self._layers or sum(leaf.nbytes for leaf in new) <= MOST * size:
            self._live[name] = (leaves, spec, [leaf._version for leaf in new])

    def _store(self, batch: Batch, live: dict[str, tuple[list[Any], Any, list[int]]]) -> None:
        for name, (leaves, spec, versions) in live.items():
            if [leaf._version for leaf in leaves if isinstance(leaf, Tensor)] != versions:
                continue  # changed in place after its module returned it: it is computed again
            for inner in [key for key in batch.kept if key.startswith(f"{name}.")]:
                batch.kept.pop(inner).drop()
            stored = [self.buffer.put(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            batch.kept[name] = Kept(stored, spec)
            before = self._layers.get(name)
            if before in self._templates and before in batch.kept:
                batch.kept.pop(before).drop()
                batch.passed.add(before)

    # --------------------------------------------------------------- the trace

    def _trace(self, example: Batch, names: dict[nn.Module, str]) -> list[Tensor]:
        """Run the example once, learn which modules run once and which can be passed by; return rows of each site."""
        calls: Counter[str] = Counter()
        clean: dict[str, Tensor] = {}
        lists = {item: module for module in (self.model, *names) for item in items_of(module)}
        last: dict[nn.Module, tuple[str, list[Any]]] = {}  # what the latest item of each list returned

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            name, given = names[module], pytree.tree_leaves((args, kwargs))
            calls[name] += 1
            if module not in lists:
                return
            before, returned = last.get(lists[module], ("", []))
            chained = any(value is leaf for value in given if isinstance(value, Tensor) for leaf in returned)
            self._layers[name] = before if chained else None
            last[lists[module]] = (name, pytree.tree_leaves(output))
            if template := template_of(given, output):
                self._templates[name] = template

        def act(name: str, output: Tensor) -> None:
            clean[name] = _some_rows(output)

        with (
            with_hooks(((module, after) for module in names), with_kwargs=True),
            tap(self.model, self.sites, act),
        ):
            self.model(**self._inputs(example))
        self._single = {name for name, count in calls.items() if count == 1}
        self._layers = {name: before for name, before in self._layers.items() if name in self._single}
        return [clean[name] for name in self.sites]

    def _check(self, example: Batch, clean: Sequence[Tensor]) -> None:
        """Go from site to site on the example, and compare; where that fails keep more of a pass, and then nothing."""
        act, self.act = self.act, lambda name, output: None
        try:
            if self._differs(example, clean) is None:
                return
            # some later module reads what an earlier layer returned: keep the outputs of all layers
            self._templates = {}
            if self._differs(example, clean) is None:
                return
            # or what it left elsewhere, as keys and values in a dict: each pass starts anew
            self._anew = True
            if other := self._differs(example, clean):
                raise ValueError(
                    f"a forward pass that was stopped and goes on gives other activations at {other!r} than one "
                    "that runs through: a module before it keeps a state between calls or draws at random; "
                    'mode="parallel" needs no stops'
                )
        finally:
            self.act = act
        warn(
            f"a pass of this {type(self.model).__name__} cannot go on from a site, as a later layer reads what an "
            f"earlier one leaves outside of its output: all batches run from the start for each of {len(self.sites)} "
            'sites; mode="parallel" runs them once'
        )

    def _differs(self, example: Batch, clean: Sequence[Tensor]) -> str | None:
        """The first site at which a pass that goes from site to site gives other activations, or fails."""
        try:
            for site, wanted in zip(self.sites, clean, strict=True):
                try:
                    if not _near(_some_rows(self.run(example, site)), wanted):
                        return site
                except Exception:
                    if self._anew:
                        raise
                    return site
        finally:
            example.clear()
        return None


def without_cache(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a pass that keeps no keys and values of all layers for a next one."""
    if "use_cache" in inspect.signature(model.forward).parameters:
        return {"use_cache": False, **inputs}
    return inputs


def _has_weights(module: nn.Module) -> bool:
    """Whether something is multiplied inside: modules without it are run again rather than kept."""
    return any(has_weight(inner) for inner in module.modules())


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) else 0


def _some_rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    step = max(1, -(-len(rows) // CHECKED_ROWS))
    return rows[::step].clone()


def _near(x: Tensor, wanted: Tensor) -> bool:
    # some kernels add in an order that differs from call to call
    atol = 100 * torch.finfo(x.dtype).eps * float(wanted.abs().nan_to_num().max()) if wanted.numel() else 0.0
    return x.shape == wanted.shape and torch.allclose(x, wanted, rtol=0, atol=atol, equal_nan=True)
