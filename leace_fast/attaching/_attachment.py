"""Erasers put to work in a model, after its modules or inside its norms, and the tests that they do work there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .._warnings import warn
from ..erasers import Eraser
from ..models import add_act, evaluating, hidden_of, is_norm, run_example, submodules, wears
from ._erasure import LAYER, Erasure, erase_in
from ._fused_norms import FusedNorm, find_formula

PROBE_ROWS = 8
# Of what the eraser changes on the probe rows: the same kernel on the same rows differs by nothing at all.
PROBE_TOLERANCE = 0.01
OUTPUT_TOLERANCE = 0.1  # of what the erasers change in the output of the model: compiled code rounds otherwise
# In units in the last place of the rows: a fused norm rounds once, the norm and its eraser several times.
ROUNDINGS = 2.0


class Attachment:
    """The erasers that act in one model until `end`.

    Args:
        model: any module.
        erasers: by the name of their site.
        fused: whether norms erase in the pass that norms, where that can be; other sites get a warning.

    Raises:
        ValueError: the model lacks a site, or it has another width.
        RuntimeError: the model would run without being erased; nothing stays attached.
    """

    def __init__(self, model: nn.Module, erasers: Mapping[str, Eraser], fused: bool = False) -> None:
        modules = submodules(model, erasers)
        self.erasures = {site: Erasure(eraser) for site, eraser in erasers.items()}
        rows = {site: _probe_rows(model, module, erasers[site].dim) for site, module in modules.items()}
        # what holds other sites is changed by their erasers too: its own cannot be told from these on probe rows
        alone = {site for site in erasers if not any(other.startswith(f"{site}.") for other in erasers)}
        clean = {s: _probe(module, rows[s], erasers[s]) if s in alone else None for s, module in modules.items()}
        with ExitStack() as stack:
            for site, module in modules.items():
                stack.callback(_attach(module, self.erasures[site], fused))
            for site, before in clean.items():
                if before is not None:
                    _test(erasers[site], before, _run(modules[site], rows[site]))
            stack.callback(_Check(model, modules, self.erasures).handle.remove)
            self.end = stack.pop_all().close

    def verify(self, model: nn.Module, run: Callable[..., Any], example: Mapping[str, Any] | Tensor) -> None:
        """Raise RuntimeError unless `run`, on a batch, gives what the model gives with the erasers at work."""
        got = _first(run(example) if isinstance(example, Tensor) else run(**example))
        erased = _first(run_example(model, example))
        try:
            self._activate(False)
            clean = _first(run_example(model, example))
        finally:
            self._activate(True)
        got, erased, clean = got.detach().double(), erased.double(), clean.double()
        if got.shape != erased.shape:
            raise ValueError(f"run gave shape {tuple(got.shape)}, the model itself gives {tuple(erased.shape)}")
        change, off = (erased - clean).norm(), (got - erased).norm()
        if not off <= OUTPUT_TOLERANCE * change:
            raise RuntimeError(
                f"the model runs without being erased: what run gives is {off / change:.1%} of the erasers' effect "
                f"away from the erased model's output, {(got - clean).norm() / change:.1%} from the clean one's: "
                "compile, trace or capture it again with the erasers attached"
            )

    def _activate(self, active: bool) -> None:
        for erasure in self.erasures.values():
            erasure.active = active


class _Check:
    """A hook of the model: the first pass must have run every site, and later ones only leave out what is in place."""

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], erasures: Mapping[str, Erasure]) -> None:
        self.model, self.modules, self.erasures, self.first = model, dict(modules), dict(erasures), True
        self.ways = {site: _way(model, site) for site in modules}
        for erasure in self.erasures.values():
            erasure.ran = False
        # kept, as a handle keeps the number of this hook from being given again where the model is loaded
        self.handle = model.register_forward_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "first": True}  # what a copy lost on its way is found in its first pass

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        missing = []
        for site, erasure in self.erasures.items():
            if erasure.ran:
                erasure.ran = False
            else:
                missing.append(site)
        for site in missing:  # as the encoder, in all passes of `generate` but the first
            if reason := self._reason(site):
                raise RuntimeError(f"the model ran without being erased at {site!r}: {reason}")
        self.first = False

    def _reason(self, site: str) -> str:
        """Why a pass that left out the site may not."""
        if self.first:
            return (
                "this forward pass does not call that module (replaced after it was attached, skipped, or its weights "
                "are read by a fused kernel)"
            )
        attached = self.modules[site]
        if wears(attached, LAYER) and "forward" in attached.__dict__:
            return "the module's forward was replaced after the eraser was attached; attach it again"
        *above, below = [modules.get(name) is child for modules, name, child in self.ways[site]] or [True]
        # a wrapper may have come between the model and a module that this pass leaves out
        if not below or not (all(above) or any(module is attached for module in self.model.modules())):
            return "another module has taken the place of the one that the eraser was attached to"
        return ""


def _way(model: nn.Module, site: str) -> list[tuple[Mapping[str, Any], str, nn.Module]]:
    """The modules from the model down to a site: where each is held, its name there, and itself."""
    way = []
    for name in site.split(".") if site else []:
        way.append((model._modules, name, model.get_submodule(name)))
        model = way[-1][-1]
    return way


def _attach(module: nn.Module, erasure: Erasure, fused: bool) -> Callable[[], None]:
    """Put an erasure into a module, by a hook where the module cannot take it in; returns what ends that."""
    if fused:
        try:
            erasure.norm = FusedNorm(find_formula(module, erasure.eraser.dim), erasure.eraser)
            return erase_in(module, erasure)
        except ValueError as reason:
            erasure.norm = None
            warn(f"{erasure.eraser.site!r} is erased after it has run, as it cannot be fused: {reason}")
    try:
        return erase_in(module, erasure)
    except ValueError:
        return add_act(module, erasure)


def _test(eraser: Eraser, before: Tensor, after: Any) -> None:
    """Raise RuntimeError unless `after` is what the eraser makes of `before`, and nothing of it is left to be read."""
    wanted = eraser(before)
    unit = ROUNDINGS * torch.finfo(before.dtype).eps
    if before.dtype == torch.float64:  # many norms compute in float32 all the same
        unit = torch.finfo(torch.float32).eps
    change, off, before, wanted = (part.double() for part in (wanted - before, after - wanted, before, wanted))
    left, right = eraser.left.to(off), eraser.right.to(off)
    # the variances of rounding errors add up, in the rows and in what is read of them
    noise = unit**2 * (before.square() + wanted.square())
    read_noise = noise @ right.square().mT
    noise = noise + read_noise @ left.square().mT
    for error, scale, allowed in ((off, change, noise), (off @ right.mT, change @ right.mT, read_noise)):
        error, scale = error.norm(), scale.norm()
        if not error <= PROBE_TOLERANCE * scale + allowed.sum().sqrt():
            raise RuntimeError(
                f"the model would run without being erased at {eraser.site!r}: on probe rows the module's output is "
                f"{error / scale:.1%} of the erased part away from the erased one (hooks of this module do not "
                "run, or another one changes its output)"
            )


def _probe_rows(model: nn.Module, module: nn.Module, dim: int) -> Tensor:
    like = next(module.parameters(), None)
    like = next(model.parameters(), torch.empty(0)) if like is None else like
    rows = torch.randn(1, PROBE_ROWS, dim, generator=torch.Generator().manual_seed(0))
    # offloaded weights are on no device until the module runs, and take rows from the host
    return rows.to("cpu" if like.is_meta else like.device, like.dtype)


def _probe(module: nn.Module, rows: Tensor, eraser: Eraser) -> Tensor | None:
    """The module's output for the rows, or None for a module that does not take rows alone, such as a layer."""
    try:
        output = _run(module, rows)
    except Exception as error:
        if is_norm(module) and isinstance(error, (RuntimeError, ValueError)):
            width = f"rows of the eraser's width {eraser.dim}"
            raise ValueError(f"{eraser.site!r} does not take {width}: {error}") from error
        return None
    if not isinstance(output, Tensor) or output.shape[-1] != eraser.dim:
        got = f"rows of width {output.shape[-1]}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(f"the output of {eraser.site!r} is {got}, its eraser is for rows of width {eraser.dim}")
    return output


@torch.no_grad()
def _run(module: nn.Module, rows: Tensor) -> Any:
    with evaluating(module):
        return hidden_of(module(rows))


def _first(output: Any) -> Tensor:
    """The first float tensor of what a model returned."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())
