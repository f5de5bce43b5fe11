"""Erasers put to work in a model, after its modules or inside its norms, and the tests that they do work there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .._warnings import warn
from ..erasers import Eraser
from ..models import add_act, evaluating, hidden_of, is_norm, run_example
from ._erasure import Erasure, erase_in
from ._fused_norms import FusedNorm, find_formula
from ._places import places
from ._watching import watch

PROBE_ROWS = 8
# Of what the eraser changes on the probe rows: the same kernel on the same rows differs by nothing at all.
PROBE_TOLERANCE = 0.01
OUTPUT_TOLERANCE = 0.1  # of what the erasers change in the output of the model: compiled code rounds otherwise
# In units in the last place of the rows: a fused norm rounds once, the norm and its eraser several times.
ROUNDINGS = 2.0


class Attachment:
    """The erasers that act in one model until `end`.

    Args:
        model: any module, in no wrapper (see `unwrapped`).
        erasers: by the name of their site.
        fused: whether norms erase in the pass that norms, where that can be; other sites get a warning.

    Raises:
        ValueError: the model lacks a site or its weights, a site has another width, or nothing can act there.
        RuntimeError: the model would run without being erased; nothing stays attached.
    """

    def __init__(self, model: nn.Module, erasers: Mapping[str, Eraser], fused: bool = False) -> None:
        found = places(model, erasers)
        erasers = {name: erasers[site] for site, (name, _) in found.items()}
        modules = dict(found.values())
        self.erasures = {site: Erasure(eraser) for site, eraser in erasers.items()}
        rows = {site: _probe_rows(model, module, erasers[site].dim) for site, module in modules.items()}
        # what holds other sites is changed by their erasers too: its own cannot be told from these on probe rows
        alone = {site for site in erasers if not any(other.startswith(f"{site}.") for other in erasers)}
        # sharded weights (DTensor) are whole only while the model runs
        alone -= {s for s, module in modules.items() if any(hasattr(p, "device_mesh") for p in module.parameters())}
        clean = {s: _probe(module, rows[s], erasers[s]) if s in alone else None for s, module in modules.items()}
        with ExitStack() as stack:
            for site, module in modules.items():
                stack.callback(_attach(module, self.erasures[site], fused))
            for site, before in clean.items():
                if before is not None:
                    _test(erasers[site], before, _run(modules[site], rows[site]))
            stack.callback(watch(model, modules, self.erasures))
            stack.callback(self._end)
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

    def _end(self) -> None:
        for erasure in self.erasures.values():
            erasure.attached.ended = True

    def _activate(self, active: bool) -> None:
        for erasure in self.erasures.values():
            erasure.active = active


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
